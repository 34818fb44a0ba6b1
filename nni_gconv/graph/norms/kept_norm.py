"""A norm over channels some of which went: they count as the zeros that they were."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LOW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ChannelNorm:
    """What a norm over channels computes.

    Attributes
    ----------
    dims : tuple of int
        Dimensions that it normalises over; empty: all but the first.
    eps : float or None
        Added to the variance; None: what the type of the numbers resolves.
    centered : bool
        True subtracts the mean (layer norm); False does not (RMS norm).
    weight, bias : str or None
        Attributes that hold scale and shift.
    channel : int
        Dimension along which channels went.
    width, kept : int
        How many there were and how many are left; equal: none went.
    response : bool
        True is ConvNeXt V2's global response normalisation: each channel is scaled by its norm in
        space over the mean of these norms, and what came in is added.
    """

    dims: tuple[int, ...]
    eps: float | None
    centered: bool = True
    weight: str | None = "weight"
    bias: str | None = "bias"
    channel: int = 0
    width: int = 1
    kept: int = 1
    response: bool = False

    @property
    def share(self) -> float:
        """Share of the channels that is left."""
        return self.kept / self.width

    def over(self, rank: int) -> list[int]:
        """Return the dimensions of a tensor of `rank` dimensions that it normalises over."""
        return [d % rank for d in self.dims] or list(range(1, rank))


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: list[int],
    eps: float | None,
    centered: bool,
    share: float = 1.0,
    response: bool = False,
) -> Tensor:
    """Normalise over dimensions along which only a share of the numbers is left.

    The others are zeros: they count in the mean and in the variance and are not stored.

    Parameters
    ----------
    x : Tensor
    weight, bias : Tensor or None
        As they broadcast, or one number for each place of the first normalised dimension.
    dims, eps, centered, share, response
        See :class:`ChannelNorm`; `dims` are not negative.

    Examples
    --------
    >>> x = torch.tensor([[1.0, -2.0, 4.0, 0.0]])
    >>> whole = nn.functional.layer_norm(x, [4])
    >>> kept = normalise(x[:, :3], None, None, [1], 1e-5, True, share=3 / 4)
    >>> torch.allclose(whole[:, :3], kept)
    True
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    if response:
        return _by_response(x, weight, bias, dims, eps, share)
    y = x.float() if x.dtype in _LOW else x
    zeros: Tensor | float = 0.0
    if centered:
        mean = y.mean(dims, keepdim=True) * share
        y = y - mean
        zeros = mean.square() * (1 - share)
    # A norm is one pass, squares and their mean are two.
    square = torch.linalg.vector_norm(y, dim=dims, keepdim=True).square()
    count = math.prod(x.shape[d] for d in dims)
    scale = torch.rsqrt(square * (share / count) + zeros + eps)
    # What nobody else has, and no gradient needs, is changed where it is; torch 2.7 cannot turn
    # such an operator into ONNX.
    own = centered and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    y = (y.mul_(scale) if own else y * scale).to(x.dtype)
    if weight is not None:
        weight = _placed(weight, y, dims)
        y = y.mul_(weight) if own and weight.dtype == y.dtype else y * weight
    if bias is not None:
        bias = _placed(bias, y, dims)
        y = y.add_(bias) if own and bias.dtype == y.dtype else y + bias
    return y


def _by_response(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: list[int],
    eps: float,
    share: float,
) -> Tensor:
    space = [d for d in range(1, x.dim()) if d not in dims]
    norms = torch.linalg.vector_norm(x, dim=space, keepdim=True)
    y = x * (norms / (norms.mean(dims, keepdim=True) * share + eps))
    y = x + (y if weight is None else y * _placed(weight, x, dims))
    return y if bias is None else y + _placed(bias, x, dims)


def _placed(parameter: Tensor, x: Tensor, dims: list[int]) -> Tensor:
    """View scale or shift so that it stands where it acts."""
    behind = x.dim() - 1 - dims[0] if parameter.dim() == 1 else 0
    index: tuple[Any, ...] = (..., *([None] * behind))
    return parameter[index] if behind else parameter


class KeptNorm(nn.Module):
    """What became of a norm over channels when some of them went; see :func:`normalise`.

    A module becomes one in place (:func:`thin_norm`): its parameters, hooks and flags stay, and so
    do its children, which are called in turn on what is normalised.
    """

    norm: ChannelNorm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, as the module did when all channels were there."""
        norm = self.norm
        weight, bias = (None if n is None else getattr(self, n) for n in (norm.weight, norm.bias))
        y = normalise(
            x, weight, bias, norm.over(x.dim()), norm.eps, norm.centered, norm.share, norm.response
        )
        for child in self.children():
            y = child(y)
        return y

    def extra_repr(self) -> str:
        """Say what it normalises."""
        norm = self.norm
        return f"{norm.kept} of {norm.width} channels, dims={norm.dims}, eps={norm.eps}"


def thin_norm(module: nn.Module, norm: ChannelNorm) -> None:
    """Let a norm over channels count channels that went, in place.

    Examples
    --------
    >>> module = nn.LayerNorm(4)
    >>> thin_norm(module, ChannelNorm(dims=(-1,), eps=1e-5, channel=-1, width=6, kept=4))
    >>> module
    KeptNorm(4 of 6 channels, dims=(-1,), eps=1e-05)
    """
    module.__class__ = KeptNorm
    module.norm = norm  # type: ignore[assignment]
    # What the class that it was calls its width, for a forward that asks for it.
    if hasattr(module, "normalized_shape"):
        rest: Any = module.normalized_shape
        module.normalized_shape = (norm.kept, *rest[1:])  # type: ignore[assignment]
    if hasattr(module, "num_channels"):
        module.num_channels = norm.kept  # type: ignore[assignment]
