"""Every pruner; what stands here passes the whole contract."""

from __future__ import annotations

from functools import partial

import torch
from own_method import ToyPruner
from torch import Tensor, nn
from torch.nn import functional as F

from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.criteria import (
    ActivationPruner,
    DataCriterion,
    FisherPruner,
    HessianPruner,
    LampPruner,
    MagnitudePruner,
    RandomPruner,
    TaylorPruner,
)
from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner
from nni_gconv.pruning.methods.gsparsity.pruner import GSparsityPruner
from nni_gconv.pruning.methods.nni import NNIMethodPruner
from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner
from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, of maps that of their means."""
    return F.cross_entropy(outputs.flatten(2).mean(2) if outputs.dim() > 2 else outputs, labels)


def some_images(model: nn.Module, dummy_input: Tensor | None) -> Calibration:
    """Eight images that a network takes, with labels of two classes."""
    if not isinstance(model, nn.Module):  # which the pruner has to say
        return Calibration([(torch.zeros(8, 3, 8, 8), torch.arange(8) % 2)])
    first = next(p for p in model.parameters() if p.dim() == 4)
    shape = (first.shape[1], 8, 8) if dummy_input is None else dummy_input.shape[1:]
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(8, *shape, generator=generator)
    return Calibration([(images, torch.arange(8) % 2)], batch_size=5)


def calibrated(kind: type[DataCriterion]) -> type[DataCriterion]:
    """A criterion that finds images by itself, to be made as any other pruner."""

    class Calibrated(kind):
        def __init__(self, model, config_list, evaluator=None, existed_wrappers=None, **options):
            images = some_images(model, options.get("dummy_input"))
            loss = {"loss": mean_loss} if "loss" in kind.Options.model_fields else {}
            given = {"calibration": images, **loss, **options}
            super().__init__(model, config_list, evaluator, existed_wrappers, **given)

    return Calibrated


PRUNERS = {
    "fpgm": FPGMPruner,
    "gsparsity": GSparsityPruner,
    "slimming": SlimmingPruner,
    "nni-l1": partial(NNIMethodPruner, method="L1NormPruner"),
    "nni-l2": partial(NNIMethodPruner, method="L2NormPruner"),
    "nni-fpgm": partial(NNIMethodPruner, method="FPGMPruner"),
    "own": ToyPruner,
}
PRUNERS |= {
    "magnitude": MagnitudePruner,
    "magnitude-l1": partial(MagnitudePruner, norm="l1"),
    "lamp": LampPruner,
    "random": partial(RandomPruner, seed=3),
    "activation": calibrated(ActivationPruner),
    "taylor": calibrated(TaylorPruner),
    "fisher": calibrated(FisherPruner),
    "hessian": calibrated(HessianPruner),
}

#: What goes is decided by their training where the config_list does not say how much.
HAVE_A_GOAL = (GSparsityPruner,)

#: Those that leave group convolutions instead of fewer channels. How good groups are is not asked
#: here: without annealing they take milliseconds.
GROUP_PRUNERS = {
    "gconv": partial(GroupConvPruner, restarts=0),
    "gconv-shaping": partial(GroupConvPruner, shaping=1.0, restarts=0),
    "gconv-ramp": partial(GroupConvPruner, schedule="cubic", restarts=0),
    "shuffle": ShufflePruner,
    "shuffle-ramp": partial(ShufflePruner, schedule={"name": "linear", "end": 2}),
}


def taken_apart(make):
    """The class of a case, and the options it is made with."""
    return getattr(make, "func", make), getattr(make, "keywords", {})
