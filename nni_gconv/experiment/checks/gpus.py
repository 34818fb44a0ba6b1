"""Trials at a time against the GPUs of this machine, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks.trial_recipe import TrialRecipe
from nni_gconv.slots import GPUS_VARIABLE, Slots, machine_slots


@dataclass(frozen=True)
class GpuWish:
    """What one trial wants.

    Attributes
    ----------
    count : int
        GPUs; 0 where it runs on the CPU anyway.
    required : bool
        Whether it cannot do without.
    """

    count: int
    required: bool = False


def gpu_wish(trial: TrialRecipe | None) -> GpuWish:
    """Tell what a trial wants by its command and recipe; nothing where these are not known."""
    if trial is None:
        return GpuWish(0)
    device = str(trial.value("device", "auto"))
    if device not in ("auto", "cuda"):
        return GpuWish(0)
    wanted = trial.environment.get(GPUS_VARIABLE, "")
    if not wanted.isdigit():
        wanted = str(trial.given.get("--gpus", trial.value("gpus", 1)))
    return GpuWish(int(wanted) if wanted.isdigit() else 1, device == "cuda")


def give_gpus(config: Any, services: Sequence[Any], gpus: int, *, fit: bool) -> None:
    """Make every trial take `gpus` GPUs, wherever it runs.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        Canonical; is changed.
    services : sequence of nni.experiment.config.TrainingServiceConfig
        Its training services.
    gpus : int
        GPUs a trial; 0: none.
    fit : bool
        Where all trials run on this machine, make ``trialConcurrency`` what there is room for.

    Raises
    ------
    ConfigError
        The machine has fewer.
    """
    if fit and gpus and [str(one.platform) for one in services] == ["local"]:
        config.trial_concurrency = _room(gpus)
    for one in [config, *services]:
        if one.trial_command:
            one.trial_command = f"{GPUS_VARIABLE}={gpus} {one.trial_command}"


def _room(gpus: int) -> int:
    slots = machine_slots()
    if not slots.names:
        raise ConfigError(f"--gpus {gpus}: this machine has no GPU to give: {slots.reason}")
    if len(slots) < gpus:
        raise ConfigError(f"--gpus {gpus}: {_shown(slots)}, fewer than one trial wants")
    return len(slots) // gpus


def gpu_notes(config: Any, trial: TrialRecipe | None) -> list[str]:
    """Compare ``trialConcurrency`` with the GPUs of this machine.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        Canonical.
    trial : TrialRecipe, optional
        What its trials run.

    Returns
    -------
    list of str
        What is allowed but may not be meant; empty where trials need no GPU.

    Raises
    ------
    ConfigError
        A trial cannot run here at all.
    """
    wish = gpu_wish(trial)
    if wish.count == 0:
        return []
    slots = machine_slots()
    if not slots.names:
        if wish.required:
            raise ConfigError(f"device: cuda in the recipe, but this machine has no GPU to give: "
                              f"{slots.reason}")  # fmt: skip
        return [f"no GPU on this machine ({slots.reason}): trials run on the CPU"]
    places = len(slots) // wish.count
    if not places:
        raise ConfigError(f"gpus: {wish.count} for each trial, but {_shown(slots)}")
    if config.trial_concurrency > places:
        return [
            f"trialConcurrency: {config.trial_concurrency}, but {_shown(slots)}, room for "
            f"{places} at a time: the others wait for a free one"
        ]
    if config.trial_concurrency < places:
        return [
            f"trialConcurrency: {config.trial_concurrency}, but {_shown(slots)}, room for "
            f"{places} at a time: some stay idle (--gpus {wish.count} takes them all)"
        ]
    return []


def _shown(slots: Slots) -> str:
    count = len(slots)
    return f"this machine has {count} GPU{'s' * (count != 1)} ({', '.join(slots.names)})"
