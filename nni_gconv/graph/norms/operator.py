"""Norms over channels as one operator of the trace, however their forwards are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.graph.norms.kept_norm import ChannelNorm, normalise
from nni_gconv.graph.norms.recognise import find_norm

_LIBRARY = torch.library.Library("nni_gconv", "DEF")
_LIBRARY.define(
    "channel_norm(Tensor x, Tensor? weight, Tensor? bias, int[] dims, float? eps, bool centered, "
    "float share, bool response) -> Tensor"
)
_LIBRARY.impl("channel_norm", normalise, "CompositeImplicitAutograd")


@contextmanager
def norms_as_operators(model: nn.Module) -> Iterator[None]:
    """Let a model's norms over channels call ``nni_gconv::channel_norm`` while it is traced."""
    changed = []
    for module in model.modules():
        norm = find_norm(module)
        if norm is not None:
            module.forward = _forward(module, norm)  # type: ignore[method-assign]
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward(module: nn.Module, norm: ChannelNorm) -> Callable[..., Tensor]:
    own = module.forward

    def forward(x: Tensor, *more: Any, **named: Any) -> Tensor:
        if more or named:
            return own(x, *more, **named)
        weight, bias = (None if n is None else getattr(module, n) for n in (norm.weight, norm.bias))
        y = torch.ops.nni_gconv.channel_norm(
            x, weight, bias, norm.over(x.dim()), norm.eps, norm.centered, norm.share, norm.response
        )
        for child in module.children():
            y = child(y)
        return y

    return forward
