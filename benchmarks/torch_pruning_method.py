"""Torch-Pruning as a method of ours: its choice, in masks that go the way of all others.

`prune.method: torch_pruning_method:TorchPruning` in a recipe that is run from benchmarks/ cuts with
Torch-Pruning (pip install torch-pruning), its ratio found by halving until the budget of MACs is
met, and trains, measures and reports as every recipe does.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch_pruning as tp
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nni_gconv.errors import BudgetError
from nni_gconv.profiling import count
from nni_gconv.pruning import Calibration, ChannelOptions, ChannelPruner

Criterion = Literal["L2", "Taylor", "Hessian"]
Style = Literal["local", "global", "isomorphic"]
#: Output channels that are gone, by the convolution's name.
Gone = dict[str, list[int]]
_IMPORTANCES = {
    "L2": tp.importance.GroupMagnitudeImportance,
    "Taylor": tp.importance.GroupTaylorImportance,
    "Hessian": tp.importance.GroupHessianImportance,
}


def cut_to(
    dense: nn.Module, images: Calibration, criterion: Criterion, style: Style, macs: float
) -> tuple[nn.Module, Gone]:
    """Cut a copy to at most a share of the MACs; return it and what is gone."""
    example = images.inputs[:1]
    whole = count(dense, example).macs
    low, high, best = 0.0, 0.95, None
    for _ in range(9):
        middle = (low + high) / 2
        found = cut(copy.deepcopy(dense), images, criterion, style, middle)
        if count(found[0], example).macs / whole <= macs:
            high, best = middle, found
        else:
            low = middle
    if best is None:
        raise BudgetError("Torch-Pruning does not reach the budget")
    return best


def cut(
    model: nn.Module, images: Calibration, criterion: Criterion, style: Style, ratio: float
) -> tuple[nn.Module, Gone]:
    """Cut a share of the channels out of `model` itself."""
    importance = _IMPORTANCES[criterion]()
    names = {module: name for name, module in model.named_modules()}
    pruner = tp.pruner.BasePruner(
        model,
        images.inputs[:1],
        importance,
        pruning_ratio=ratio,
        global_pruning=style != "local",
        isomorphic=style == "isomorphic",
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
    )
    _look(model, images, criterion, importance)
    gone: Gone = {}
    for group in pruner.step(interactive=True):
        for step, channels in group:
            module = step.target.module
            if isinstance(module, nn.Conv2d) and pruner.DG.is_out_channel_pruning_fn(step.handler):
                gone.setdefault(names[module], []).extend(channels)
        group.prune()
    model.zero_grad()
    return model, gone


def _look(model: nn.Module, images: Calibration, criterion: Criterion, importance: Any) -> None:
    """Leave the gradients that a criterion reads."""
    if criterion == "L2" or images.labels is None:
        return
    if criterion == "Taylor":
        for x, y in zip(images.inputs.split(128), images.labels.split(128), strict=True):
            F.cross_entropy(model(x), y, reduction="sum").backward()
        return
    importance.zero_grad()
    for loss in F.cross_entropy(model(images.inputs[:64]), images.labels[:64], reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(model)


class TorchPruning(ChannelPruner):
    """Removes the channels that Torch-Pruning removes, to a budget of MACs."""

    class Options(ChannelOptions):
        """Its criterion, and which layers it ranks together."""

        criterion: Criterion = Field("L2", description="Importance of a group of channels.")
        style: Style = Field("global", description="Which layers are ranked together.")

    options: Options

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        self._dense = copy.deepcopy(model).eval()
        super().__init__(model, *args, **options)

    def rank(self, filters: Any) -> Tensor:
        """Give the same score to all: Torch-Pruning has its own."""
        return filters[0].new_zeros(len(filters[0]))

    def _removed(self, metrics: Any) -> np.ndarray:
        images, budget = self.options.calibration, self.budget or {}
        asked = self.options.criterion, self.options.style, budget["macs"]
        _, gone = cut_to(self._dense, Calibration.of(images), *asked)
        removed = self.coupling.empty()
        for coupled in self.sets:
            for member in coupled.members:
                away = np.isin(member.rows, gone.get(member.module, []))
                removed[coupled.classes[np.asarray(member.units)[away]]] = True
        return removed
