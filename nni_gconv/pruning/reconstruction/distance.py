"""How far the outputs of a pruned network are from those of the dense one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nni_gconv.modes import evaluating


@torch.no_grad()
def outputs_of(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Run a network in eval mode; return its floating-point outputs, batches joined, on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        found: list[list[Tensor]] = []
        for batch in batches:
            result: Any = model(batch.to(device))
            leaves = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
            found.append([x.float().cpu() for x in leaves if x.is_floating_point()])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def distance(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> float:
    """Return the mean divergence of class probabilities, or the relative squared error.

    A single output of shape (images, classes) is taken for logits: the Kullback-Leibler
    divergence of the pruned network's probabilities from the dense one's, in nats. Anything else
    counts by its squared error over the square of the dense output.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> distance([logits], [logits])
    0.0
    """
    if len(dense) == 1 and dense[0].dim() == 2 and dense[0].shape[1] > 1:
        target, said = (x[0].double().log_softmax(1) for x in (dense, pruned))
        return _finite(float((target.exp() * (target - said)).sum(1).mean()))
    errors = [
        float((y - p).double().square().sum() / y.double().square().sum().clamp_min(1e-30))
        for y, p in zip(dense, pruned, strict=True)
    ]
    return _finite(sum(errors))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
