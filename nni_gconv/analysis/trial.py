"""The sensitivity of the network that a recipe trains or loads, on its validation images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nni_gconv import compat
from nni_gconv.analysis.criteria import ranked_by
from nni_gconv.analysis.curves import TOLERANCE
from nni_gconv.analysis.measure import RATIOS, check_points, sensitivity
from nni_gconv.analysis.result import Sensitivity
from nni_gconv.config_list import CHANNEL_KEYS, SELECT_KEYS
from nni_gconv.errors import ConfigError
from nni_gconv.recipe import Recipe, Trial, TrialFolder, choose_output, load_recipe
from nni_gconv.training import Distributed

#: What a recipe says of the dense network.
_DENSE = ("name", "seed", "device", "threads", "model", "data", "train")
_ENTRY_KEYS = (
    *SELECT_KEYS, *compat.LEGACY_SELECT_KEYS, *CHANNEL_KEYS,
    "internal_metric_block", "dependency_group_id", "align",
)  # fmt: skip


def trial_sensitivity(
    source: Recipe | Mapping[str, Any] | str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    criterion: str = "l1",
    ratios: Sequence[float] = RATIOS,
    tolerance: float = TOLERANCE,
    stop_below: float | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    quiet: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Sensitivity, list[Path]]:
    """Measure the dense network of a recipe and write what is found.

    The ``train`` section is run first where there is one. What is finished, or trained and
    measured so far, is not done again. Under NNI the tuner's parameters override the recipe, such
    as ``prune.config_list.0.op_names``, and the points of the curves are the intermediate results.

    Parameters
    ----------
    source : Recipe, mapping, str or Path
        A recipe. The layers that its ``prune`` section selects are measured.
    overrides : mapping, optional
        Dotted keys and values.
    output : str or Path, optional
        Folder; default ``runs/NAME/sensitivity``. Curves are written to a folder in it, named
        after the criterion.
    quiet : bool, default False
        No progress of the training on standard error.
    criterion, ratios, tolerance, stop_below, options, seed, progress
        See :func:`nni_gconv.sensitivity`.

    Returns
    -------
    found : Sensitivity
    files : list of Path
        What was written.

    Raises
    ------
    ConfigError
        The recipe is wrong or names no trained network, or the folder holds another run.
    """
    check_points(ratios, tolerance, stop_below)
    chosen = {**(overrides or {}), **compat.next_parameters()}
    recipe = load_recipe(source, chosen)
    if not recipe.dense_is_trained:
        raise ConfigError(f"nothing to measure: {recipe.how_to_train}")
    content = recipe.model_dump(mode="json", include=set(_DENSE))
    folder = Path(output).expanduser() if output else choose_output(recipe, None) / "sensitivity"
    dense, alone = Recipe.model_validate(content), Distributed()
    entries = _selection(recipe)
    with (
        TrialFolder(folder, dense, alone) as kept,
        Trial(dense, kept, alone, quiet=quiet) as trial,
    ):
        example = torch.zeros(1, *trial.input_shape, device=trial.device)
        # What is wrong with criterion or layers is said now, not after training.
        ranked_by(criterion, trial.model, example, entries, options=options, seed=seed)
        trial.train()
        found = sensitivity(
            trial.model,
            example,
            trial.loaders,
            entries,
            criterion=criterion,
            ratios=ratios,
            tolerance=tolerance,
            stop_below=stop_below,
            options=options,
            seed=seed,
            output=folder / criterion,
            progress=progress,
        )
        files = found.save(folder / criterion)
        trial.validation_seen(found.dense.accuracy)
        _report(found, tolerance)
        return found, files


def _report(found: Sensitivity, tolerance: float) -> None:
    """Tell NNI: each point is an intermediate result, the curves' mean height the final one."""
    points = [point for curve in found.curves for point in curve.points]
    for point in points:
        loss = {"loss": point.loss} if math.isfinite(point.loss) else {}
        compat.report_intermediate({"default": point.accuracy, "ratio": point.ratio, **loss})
    compat.report_final(
        {
            "default": sum(point.accuracy for point in points) / len(points),
            "ratio": min(curve.ratio(found.dense.accuracy, tolerance) for curve in found.curves),
            "accuracy_dense": found.dense.accuracy,
        }
    )


def _selection(recipe: Recipe) -> list[dict[str, Any]] | None:
    """Return the recipe's config_list without goals and what only other methods know."""
    if recipe.prune is None:
        return None
    return [
        {key: value for key, value in entry.items() if key in _ENTRY_KEYS}
        for entry in recipe.prune.config_list
    ]
