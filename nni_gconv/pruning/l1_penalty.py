"""L1 penalties and group lassos on plain tensors, in place: what several methods share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nni_gconv.groupconv.partition import l2


def add_subgradient_(
    gradients: Sequence[Tensor], scales: Sequence[Tensor], strengths: Sequence[Tensor]
) -> None:
    """Add the subgradient of ``sum(strength * |scale|)`` to gradients, in place.

    At a scale of zero the subgradient is zero, as in the paper's code.

    Parameters
    ----------
    gradients, scales, strengths : sequences of Tensor
        One of each for every layer, of equal shapes.

    Examples
    --------
    >>> gradient = torch.full((3,), 0.1)
    >>> add_subgradient_([gradient], [torch.tensor([0.5, -0.2, 0.0])], [torch.tensor(0.001)])
    >>> gradient
    tensor([0.1010, 0.0990, 0.1000])
    """
    if scales:
        signs = torch._foreach_sign(list(scales))
        torch._foreach_addcmul_(list(gradients), signs, list(strengths))


def shrink_(scales: Sequence[Tensor], thresholds: Sequence[Tensor]) -> None:
    """Soft threshold in place: ``sign(scale) * max(|scale| - threshold, 0)``.

    It is the proximal map of ``threshold * |scale|``: what it brings to zero is zero exactly.

    Parameters
    ----------
    scales, thresholds : sequences of Tensor
        One of each for every layer, of equal shapes.

    Examples
    --------
    >>> scale = torch.tensor([0.5, -0.2, 0.05])
    >>> shrink_([scale], [torch.tensor(0.1)])
    >>> scale
    tensor([ 0.4000, -0.1000,  0.0000])
    """
    if scales:
        clipped = torch._foreach_minimum(list(scales), list(thresholds))
        torch._foreach_maximum_(clipped, torch._foreach_neg(list(thresholds)))
        torch._foreach_sub_(list(scales), clipped)


def shrink_outside_(weight: Tensor, inside: Tensor, threshold: float) -> None:
    """Soft-threshold, in place, the norm of every kernel outside the groups.

    Parameters
    ----------
    weight : Tensor, shape (F, C, ...)
    inside : Tensor of bool, shape (F, C)
        Whether filter and channel share a group.
    threshold : float
        What a kernel's L2 norm loses; it ends at 0.

    Examples
    --------
    >>> weight = torch.tensor([[3.0, 1.0], [-2.0, 4.0]])[..., None]
    >>> shrink_outside_(weight, torch.eye(2, dtype=torch.bool), threshold=1.5)
    >>> weight[..., 0].tolist()
    [[3.0, 0.0], [-0.5, 4.0]]
    """
    norms = l2(weight)
    left = (1 - threshold / norms.clamp_min(1e-30)).clamp_min(0)
    factor = torch.where(inside, 1.0, left)
    weight.mul_(factor.view(*factor.shape, *[1] * (weight.dim() - 2)).to(weight))
