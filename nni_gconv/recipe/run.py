"""One trial from start to end: the same for a person, a script and NNI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_gconv import compat
from nni_gconv.errors import ConfigError
from nni_gconv.files import write_json
from nni_gconv.own_code import code_names
from nni_gconv.recipe.adopt import adopt_unfinished
from nni_gconv.recipe.folder import TrialFolder, choose_output
from nni_gconv.recipe.gpus import trial_gpus
from nni_gconv.recipe.load import load_recipe
from nni_gconv.recipe.result import TrialResult
from nni_gconv.recipe.schema import Recipe
from nni_gconv.recipe.stages import Trial
from nni_gconv.training import Distributed


def run_recipe(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> TrialResult:
    """Run a recipe: train, sparsify, prune, speed up, fine-tune, export, measure.

    Under NNI the tuner's parameters, dotted keys, override the recipe, and results are reported.

    Parameters
    ----------
    recipe : Recipe, mapping, str or Path
        A recipe, its content, or a YAML file.
    output : str or Path, optional
        Folder to write to; default: NNI's folder of the trial, else ``runs/NAME``.
    overrides : mapping, optional
        Dotted keys and values.
    resume : bool, default True
        Go on where an earlier run of this recipe in the folder stopped: finished stages are not
        run again, training goes on from its last epoch, and the numbers are those of an
        uninterrupted run. False refuses a folder that holds a run. Under NNI a trial also goes on
        from what an unfinished trial of the same recipe left in this experiment.
    quiet : bool, default False
        No progress on standard error.

    Returns
    -------
    TrialResult

    Raises
    ------
    NniGconvError
        ConfigError, DataError, CheckpointError, TraceError, SpeedupError or BudgetError.

    Examples
    --------
    >>> import tempfile
    >>> result = run_recipe(
    ...     {
    ...         "model": {"name": "resnet8", "options": {"width": 0.25}},
    ...         "data": {"name": "digits", "train_size": 200},
    ...         "train": {"epochs": 1},
    ...         "prune": {"method": "fpgm", "budget": {"macs": 0.5}},
    ...         "report": {"latency": None},
    ...     },
    ...     output=tempfile.mkdtemp(),
    ...     quiet=True,
    ... )
    >>> result.metrics["macs_ratio"] <= 0.5
    True
    """
    given = dict(overrides or {})
    first = load_recipe(recipe, given)
    device = None if first.device == "auto" else first.device
    # The GPUs come first: CUDA looks once at which ones it may see.
    with trial_gpus(first), Distributed.from_environment(device) as distributed:
        asked = (
            compat.next_parameters() if distributed.is_main and compat.running_under_nni() else {}
        )
        asked = distributed.broadcast_object(asked)
        _refuse_code(asked, first)  # before the recipe is read, which imports what it names
        loaded = load_recipe(recipe, {**given, **asked})
        path = choose_output(loaded, Path(output) if output else None)
        if distributed.is_main and compat.running_under_nni():
            compat.end_leftovers()
            if output is None and resume:
                adopt_unfinished(path, loaded)
        with TrialFolder(path, loaded, distributed, resume=resume) as folder:
            return _run(loaded, folder, distributed, quiet)


def _refuse_code(parameters: Mapping[str, Any], own: Recipe) -> None:
    """Refuse a tuner's parameters that name code which the recipe itself does not."""
    known = set(code_names(own.model_dump(mode="json")).values())
    for key, value in code_names(dict(parameters)).items():
        if value not in known:
            raise ConfigError(
                f"{key}: the tuner's parameters name code, {value!r}; only the recipe file and the "
                "command may"
            )


def _run(recipe: Recipe, folder: TrialFolder, distributed: Distributed, quiet: bool) -> TrialResult:
    reports = distributed.is_main and compat.running_under_nni()
    if reports:
        compat.link_tensorboard(folder.path)
    with Trial(recipe, folder, distributed, quiet=quiet) as trial:
        trial.check()
        trial.train()
        trial.prune()
        trial.speedup()
        trial.finetune()
        trial.export()
        trial.optimize()
        result = trial.report()
        trial.show(result)
    if distributed.is_main:
        write_json(folder.path / "result.json", result.to_dict())
    if reports:
        compat.report_final(told_to_nni(recipe, result))
    return result


def told_to_nni(recipe: Recipe, result: TrialResult) -> dict[str, float]:
    """What NNI is told: as many numbers as its pages have room for.

    They show `default`, so not the same again as `accuracy`; the rest is in the trial's files.
    """
    wanted = recipe.objective or {}
    unseen = {"latency_ratio_low", "latency_ratio_high"}
    if recipe.objective is None:
        unseen.add("accuracy")
    return {
        name: value
        for name, value in result.metrics.items()
        if name in wanted or not (name in unseen or name.startswith("top5"))
    }
