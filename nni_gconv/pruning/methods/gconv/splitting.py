"""How layers are split, by what the options say: dense ones, and groups that are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_gconv.groupconv import OutputError, partition_by_error
from nni_gconv.groupconv.partition import (
    PATTERNS,
    Partition,
    fixed_pattern,
    partition_joint,
    partition_many,
)
from nni_gconv.pruning.group_sides import Side


def split_dense(
    scores: Mapping[str, NDArray[np.float64]],
    counts: Mapping[str, int],
    sides: Mapping[str, tuple[Side, Side]],
    options: Any,
    restarts: int | None = None,
) -> dict[str, Partition]:
    """Split layers that have no groups yet, those of one number of groups together.

    Parameters
    ----------
    scores : mapping of str to ndarray, shape (F, C)
        Of the kernels of each layer.
    counts : mapping of str to int
        Layer -> G; in this order.
    sides : mapping
        What layers share, see :meth:`nni_gconv.pruning.group_sides.LiveLayers.shared`.
    options : GroupConvPruner.Options
        Method and effort.
    restarts : int, optional
        In place of that of the options.
    """
    if options.method in PATTERNS:
        return {
            name: _fixed(scores[name], count, options.method, options.seed + index)
            for index, (name, count) in enumerate(counts.items())
        }
    effort = {"restarts": options.restarts, "seed": options.seed}
    if options.method != "assignment":
        found = partition_many(
            [scores[name] for name in counts],
            list(counts.values()),
            options.method,
            options.num_sort_iters,
        )
        return dict(zip(counts, found, strict=True))
    if restarts is not None:
        effort["restarts"] = restarts
    split: dict[str, Partition] = {}
    for count in sorted(set(counts.values())):
        mine = [name for name in counts if counts[name] == count]
        rows, columns = ([sides[name][side] for name in mine] for side in (0, 1))
        parts = partition_joint([scores[name] for name in mine], rows, columns, count, **effort)
        split.update(zip(mine, parts, strict=True))
    return split


def split_further(
    scores: NDArray[np.float64], had: int, count: int, options: Any, seed: int
) -> Partition:
    """Split each group of a convolution in as many.

    Parameters
    ----------
    scores : ndarray, shape (F, C / had)
        Of its kernels, as its weight holds them.
    had : int
        How many groups it has.
    count : int
        In how many each is split.
    options : GroupConvPruner.Options
        Method and effort.
    seed : int
        Of fixed patterns.

    Returns
    -------
    Partition
        Of all F filters and C input channels, in ``had * count`` groups.
    """
    pieces = np.split(scores, had)
    if options.method in PATTERNS:
        return merged([_fixed(piece, count, options.method, seed) for piece in pieces])
    return merged(
        partition_many(
            pieces,
            count,
            options.method,
            options.num_sort_iters,
            options.restarts,
            options.seed,
        )
    )


def split_by_error(
    scores: NDArray[np.float64], errors: Sequence[OutputError], count: int, options: Any
) -> Partition:
    """Split each group of a convolution in as many, by the error of its output.

    Parameters
    ----------
    scores : ndarray, shape (F, C / groups)
        As its weight holds them; where the search begins.
    errors : sequence of OutputError
        Of each group that it has; one of a dense layer.
    count : int
        In how many each is split.
    options : GroupConvPruner.Options
        Effort.
    """
    effort = {"restarts": options.restarts, "seed": options.seed}
    pieces = np.split(scores, len(errors))
    return merged(
        [
            partition_by_error(error, count, piece, **effort)
            for error, piece in zip(errors, pieces, strict=True)
        ]
    )


def _fixed(scores: NDArray[np.float64], count: int, method: Any, seed: int) -> Partition:
    filters, channels = scores.shape
    return fixed_pattern(filters, channels, count, method, seed)


def merged(parts: Sequence[Partition]) -> Partition:
    """Put partitions one behind the other, on the diagonal.

    Examples
    --------
    >>> one = Partition([0, 1], [1, 0], retained=2.0, bound=2.0, total=3.0)
    >>> both = merged([one, one])
    >>> both.row_groups.tolist(), both.col_groups.tolist(), both.retained
    ([0, 1, 2, 3], [1, 0, 3, 2], 4.0)
    """
    firsts = np.cumsum([0, *(part.num_groups for part in parts)])
    return Partition(
        np.concatenate([part.row_groups + n for part, n in zip(parts, firsts, strict=False)]),
        np.concatenate([part.col_groups + n for part, n in zip(parts, firsts, strict=False)]),
        retained=sum(part.retained for part in parts),
        bound=sum(part.bound for part in parts),
        total=sum(part.total for part in parts),
    )
