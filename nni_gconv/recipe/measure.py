"""The last stage of a trial: what the small model came to, beside the dense one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nni_gconv.profiling import Profile, compare_latency
from nni_gconv.recipe.schema import Recipe
from nni_gconv.training.data import Loaders
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.metrics import evaluate

__all__ = ["measure_models"]


def measure_models(
    recipe: Recipe,
    small: nn.Module,
    dense: nn.Module,
    loaders: Loaders,
    example: torch.Tensor,
    distributed: Distributed,
    costs: tuple[Profile, Profile],
) -> dict[str, Any]:
    """Evaluate and time both models; the test images are looked at here and nowhere else.

    Returns
    -------
    dict
        ``metrics``, ``dense``, ``test`` and ``latency`` of a
        :class:`~nni_gconv.recipe.result.TrialResult`; the same in every process.
    """

    def accuracy(model: nn.Module, part: str) -> float:
        loader = getattr(loaders, part)
        return evaluate(model, loader, device=example.device, distributed=distributed).accuracy

    after, before = costs
    reached = accuracy(small, "val")
    metrics: dict[str, float] = {
        "default": reached,
        "accuracy": reached,
        "accuracy_dense": accuracy(dense, "val"),
        "params": after.params,
        "params_ratio": after.params / before.params,
        "macs": after.macs,
        "macs_ratio": after.macs / before.macs,
    }
    dense_facts: dict[str, float] = {"params": before.params, "macs": before.macs}
    # One process has the clock; all report what it saw.
    rows = distributed.broadcast_object(
        _latency(recipe, small, dense, example) if distributed.is_main else []
    )
    if rows:
        metrics["latency_ms"], metrics["latency_ratio"] = rows[0]["small_ms"], rows[0]["ratio"]
        dense_facts["latency_ms"] = rows[0]["dense_ms"]
    if recipe.objective is not None:
        metrics["default"] = sum(w * metrics[m] for m, w in recipe.objective.items())
    test = {"accuracy": accuracy(small, "test"), "accuracy_dense": accuracy(dense, "test")}
    return {"metrics": metrics, "dense": dense_facts, "test": test, "latency": rows}


def _latency(
    recipe: Recipe, small: nn.Module, dense: nn.Module, example: torch.Tensor
) -> list[dict[str, Any]]:
    settings = recipe.report.latency
    if settings is None:
        return []
    rows = []
    for size in settings.batch_sizes:
        models = {"dense": dense, "small": small}
        found = compare_latency(models, example, batch_size=size, **settings.options())
        rows.append(
            {
                "batch_size": size,
                "threads": settings.threads,
                "device": found.latencies["small"].device,
                "dense_ms": found.latencies["dense"].median_ms,
                "small_ms": found.latencies["small"].median_ms,
                "ratio": found.ratios["small"],
            }
        )
    return rows
