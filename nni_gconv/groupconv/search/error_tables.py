"""Tables of what group counts keep of the layers' outputs, in place of the kernels' scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.output_error import errors_of_groups, partition_by_error
from nni_gconv.groupconv.search.tables import (
    GroupTables,
    LayerTable,
    Progress,
    kernel_scores,
)


def error_tables(
    tables: GroupTables,
    model: nn.Module,
    covariances: Mapping[str, Any],
    criterion: str | Mapping[str, Any] = "l2",
    *,
    restarts: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> GroupTables:
    """Partition every layer by the error that is left after a refit, for each of its counts.

    Parameters
    ----------
    tables, model, restarts, seed, progress
        As for :func:`score_tables`.
    covariances : mapping of str to array (C * taps, C * taps)
        Layer -> covariance of what it reads, columns as in its flattened weight; of a layer that
        has groups (groups, C / groups * taps, C / groups * taps), that of each.
    criterion
        Scores whose best partitions are where the search begins.

    Returns
    -------
    GroupTables
        ``total`` is the variance of a layer's outputs, ``retained`` what groups keep of it.

    Raises
    ------
    ConfigError
        A layer has no covariance, or one that does not fit.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    scored: list[LayerTable] = []
    done, every = 0, sum(len(t.choices) for t in tables.layers)
    for table in tables.layers:
        if table.name not in covariances:
            raise ConfigError(f"covariances: none for the layer {table.name!r}")
        weight = layers[table.name].weight
        scores = kernel_scores(table.name, weight, criterion)
        flat = cast("Tensor", weight).detach().cpu().double()
        errors = errors_of_groups(flat, covariances[table.name], table.had)
        blocks = np.split(scores, table.had)
        retained: list[float] = []
        for count in table.choices:
            found = (
                partition_by_error(error, count // table.had, block, restarts=restarts, seed=seed)
                for error, block in zip(errors, blocks, strict=True)
            )
            retained.append(sum(part.retained for part in found))
            done += 1
            if progress is not None:
                progress(done, every)
        total = float(sum(error.energy.sum() for error in errors))
        scored.append(replace(table, retained=tuple(retained), total=total))
    return replace(tables, layers=tuple(scored))
