"""What the networks of a trial are worth: between its stages, and at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nni_gconv.profiling import Profile
from nni_gconv.recipe.schema import Recipe
from nni_gconv.training import Distributed, evaluate
from nni_gconv.training.data import Loaders, Normalize

#: Accuracies of a split: ``{"val": {"accuracy_masked": 0.5, "top5_masked": 0.9}, "test": {...}}``.
Accuracies = dict[str, dict[str, float]]


def accuracies(
    which: str,
    model: nn.Module,
    loaders: Loaders,
    device: torch.device,
    distributed: Distributed,
    num_classes: int,
) -> Accuracies:
    """Measure a network on the validation and on the test images; nothing is chosen by the latter.

    Parameters
    ----------
    which : str
        ``dense``, ``masked``, ``small``; empty for the final one.
    model, loaders, device, distributed
        As for :func:`~nni_gconv.training.metrics.evaluate`.
    num_classes : int
        Top-5 is left out where it would say nothing.

    Returns
    -------
    dict
        For ``val`` and ``test`` ``accuracy_WHICH`` and ``top5_WHICH``, fractions of 1.
    """
    suffix = f"_{which}" if which else ""
    found: Accuracies = {}
    for part in ("val", "test"):
        loader = getattr(loaders, part)
        metrics = evaluate(model, loader, device=device, distributed=distributed)
        found[part] = {f"accuracy{suffix}": metrics.accuracy}
        if num_classes > 5:
            found[part][f"top5{suffix}"] = metrics.top5
    return found


def seen_before(val: float, test: float, counts: tuple[int, int]) -> bool:
    """Tell whether a network seems to have been trained on the validation images.

    That is where its accuracy on them lies above that on the test images by more than five standard
    errors. Networks near to it then look better than they are, and a choice by validation images
    leans to them.

    Parameters
    ----------
    val, test : float
        Accuracies of the dense network, fractions of 1.
    counts : (int, int)
        Validation and test images.

    Examples
    --------
    >>> seen_before(0.999, 0.936, (5000, 10000)), seen_before(0.999, 0.936, (50, 100))
    (True, False)
    """
    both = (val * counts[0] + test * counts[1]) / sum(counts)
    error = math.sqrt(both * (1 - both) * (1 / counts[0] + 1 / counts[1]))
    return val - test > 5 * error


def other_scale(model: nn.Module, used: Normalize) -> Normalize | None:
    """Return how a published network wants its pixels normalised, where that is not how they are.

    Parameters
    ----------
    model : nn.Module
        One of timm's says it in its ``pretrained_cfg``.
    used : Normalize
        Mean and standard deviation of each channel in the pixels it is given.
    """
    says = getattr(model, "pretrained_cfg", None) or {}
    if says.get("mean") is None or says.get("std") is None:
        return None
    wanted = Normalize(mean=says["mean"], std=says["std"])
    return None if wanted == used else wanted


def measure_models(
    recipe: Recipe,
    small: nn.Module,
    dense: nn.Module,
    loaders: Loaders,
    device: torch.device,
    distributed: Distributed,
    costs: tuple[Profile, Profile],
    num_classes: int,
    rows: Sequence[dict[str, Any]],
    between: Sequence[Accuracies] = (),
) -> dict[str, Any]:
    """Evaluate both models, and put together what they cost.

    Parameters
    ----------
    recipe, small, dense, loaders, device, distributed
        The trial.
    costs : (Profile, Profile)
        Of the small and of the dense model.
    num_classes : int
        As for :func:`accuracies`.
    rows : sequence of dict
        What :func:`~nni_gconv.recipe.latency.time_networks` measured; the first becomes a metric.
    between : sequence of dict
        What :func:`accuracies` found between the stages.

    Returns
    -------
    dict
        ``metrics``, ``dense``, ``test`` and ``latency`` of a
        :class:`~nni_gconv.recipe.result.TrialResult`; the same in every process. Without the dense
        network's accuracies where nothing has trained it.
    """
    after, before = costs
    given = loaders, device, distributed, num_classes
    found: Accuracies = {"val": {}, "test": {}}
    # Of one that has learned nothing it would only be something to look good against.
    first = [accuracies("dense", dense, *given)] if recipe.dense_is_trained else []
    for one in (*first, *between, accuracies("", small, *given)):
        for part, numbers in one.items():
            found[part].update(numbers)
    metrics: dict[str, float] = {
        "default": found["val"]["accuracy"],
        **found["val"],
        "params": after.params,
        "params_ratio": after.params / before.params,
        "macs": after.macs,
        "macs_ratio": after.macs / before.macs,
    }
    dense_facts: dict[str, float] = {"params": before.params, "macs": before.macs}
    if rows:
        first_row = rows[0]
        metrics["latency_ms"], metrics["latency_ratio"] = first_row["small_ms"], first_row["ratio"]
        metrics["latency_ratio_low"] = first_row["low"]
        metrics["latency_ratio_high"] = first_row["high"]
        dense_facts["latency_ms"] = rows[0]["dense_ms"]
    if recipe.objective is not None:
        metrics["default"] = sum(w * metrics[m] for m, w in recipe.objective.items())
    return {"metrics": metrics, "dense": dense_facts, "test": found["test"], "latency": [*rows]}
