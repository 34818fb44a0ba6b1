"""Convolutions that standardise their filters, some of whose columns went.

The numbers that went are no zeros: their mean and their spread are kept, a pair for each filter, so
that what is left is divided by what it was divided by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class StandardWeight:
    """How a convolution standardises its filters.

    Attributes
    ----------
    eps : float
        Added to the variance.
    factor : float
        What all filters are multiplied by.
    gain : str or None
        Attribute that holds one more factor for each filter.
    same : bool
        True pads the input so that the output is as large, over the stride.
    count : int
        How many numbers a filter had, those that went included.
    """

    eps: float
    factor: float
    gain: str | None
    same: bool
    count: int


def standardise(
    weight: Tensor,
    gain: Tensor | None,
    rest: Tensor | None,
    eps: float,
    factor: float,
    count: int,
) -> Tensor:
    """Standardise filters that were longer.

    Parameters
    ----------
    weight : Tensor, shape (filters, ...)
    gain : Tensor or None
        One factor for each filter.
    rest : Tensor, shape (filters, 4), or None
        Of what went of each filter the mean and the sum of squared distances from it, and what
        rounding took from both: in float64 they are as exact as what went.
    eps, factor, count
        See :class:`StandardWeight`.

    Examples
    --------
    >>> whole = torch.tensor([[1.0, -2.0, 4.0, 2.0]])
    >>> rest = torch.tensor([[3.0, 2.0, 0.0, 0.0]])  # of 4 and 2
    >>> kept = standardise(whole[:, :2], None, rest, 1e-5, 1.0, 4)
    >>> torch.allclose(standardise(whole, None, None, 1e-5, 1.0, 4)[:, :2], kept)
    True
    """
    rows = weight.flatten(1)
    mean, spread = _statistics(rows, rest, count)
    rows = (rows - mean) * (torch.rsqrt(spread / count + eps) * factor)
    if gain is not None:
        rows = rows * gain.flatten()[:, None]
    return rows.view_as(weight)


def _statistics(rows: Tensor, rest: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared distances of each filter, with what went of it."""
    mean = rows.mean(1, keepdim=True)
    spread = (rows - mean).square().sum(1, keepdim=True)
    if rest is None:
        return mean, spread
    own, rest = rows.shape[1], rest[:, :2] + rest[:, 2:]
    apart = rest[:, :1] - mean
    spread = spread + rest[:, 1:] + apart.square() * (own * (count - own) / count)
    return mean + apart * ((count - own) / count), spread


class KeptStandardConv2d(nn.Conv2d):
    """What became of a convolution that standardises its filters when columns of them went.

    A module becomes one in place (:func:`thin_standard`): its parameters, hooks and flags stay.
    """

    standard: StandardWeight
    rest: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the standardised filters, as when they were whole."""
        standard = self.standard
        gain = None if standard.gain is None else getattr(self, standard.gain)
        weight = standardise(
            self.weight, gain, self.rest, standard.eps, standard.factor, standard.count
        )
        return self._conv_forward(padded(x, self, standard), weight, self.bias)


def padded(x: Tensor, module: nn.Conv2d, standard: StandardWeight) -> Tensor:
    """Pad an image by as much as keeps its size, over the stride, if the convolution does that."""
    if not standard.same:
        return x
    sides: list[int] = []
    for size, kernel, stride, dilation in zip(
        x.shape[:1:-1], module.kernel_size[::-1], module.stride[::-1], module.dilation[::-1],
        strict=True,
    ):  # fmt: skip
        more = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        sides += [more // 2, more - more // 2]
    return F.pad(x, sides)


def rest_of(old: Tensor, old_rest: Tensor | None, new: Tensor, standard: StandardWeight) -> Tensor:
    """Describe what went of filters.

    Parameters
    ----------
    old, old_rest : Tensor
        The filters that stay with all that they had, and what had gone before.
    new : Tensor
        What is left of them.
    standard : StandardWeight

    Returns
    -------
    Tensor, shape (filters, 4)
        See :func:`standardise`.
    """
    count, own = standard.count, new[0].numel()
    before = None if old_rest is None else old_rest.double()
    mean, spread = _statistics(old.detach().double().flatten(1), before, count)
    kept_mean, kept_spread = _statistics(new.detach().double().flatten(1), None, own)
    gone = (mean * count - kept_mean * own) / (count - own)
    apart = (gone - kept_mean).square() * (own * (count - own) / count)
    exact = torch.cat([gone, (spread - kept_spread - apart).clamp_min(0)], 1)
    rounded = exact.to(old.dtype)
    return torch.cat([rounded, (exact - rounded.double()).to(old.dtype)], 1)


def thin_standard(module: nn.Module, standard: StandardWeight, rest: Tensor) -> None:
    """Let a convolution that standardises its filters count what went of them, in place."""
    module.__class__ = KeptStandardConv2d
    module.standard = standard  # type: ignore[assignment]
    module.register_buffer("rest", rest)
