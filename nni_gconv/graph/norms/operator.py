"""Norms over channels as one operator of the trace, however their forwards are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.graph.norms.kept_norm import ChannelNorm, normalise
from nni_gconv.graph.norms.recognise import find_norm
from nni_gconv.graph.weights import Known, StandardWeight, find_standard, padded, standardise

_LIBRARY = torch.library.Library("nni_gconv", "DEF")
_LIBRARY.define(
    "channel_norm(Tensor x, Tensor? weight, Tensor? bias, int[] dims, float? eps, bool centered, "
    "float share, bool response) -> Tensor"
)
_LIBRARY.impl("channel_norm", normalise, "CompositeImplicitAutograd")
_LIBRARY.define(
    "standard_weight(Tensor weight, Tensor? gain, Tensor? rest, float eps, float factor, "
    "int count) -> Tensor"
)
_LIBRARY.impl("standard_weight", standardise, "CompositeImplicitAutograd")


@contextmanager
def norms_as_operators(model: nn.Module) -> Iterator[None]:
    """Let a model's norms call an operator of their own while it is traced.

    Norms over channels call ``nni_gconv::channel_norm``, convolutions that standardise their
    filters ``nni_gconv::standard_weight``.
    """
    changed, known = [], Known()
    for module in model.modules():
        norm, standard = find_norm(module, known), find_standard(module, known)
        if norm is not None:
            module.forward = _forward(module, norm)  # type: ignore[method-assign]
        elif standard is not None:
            module.forward = _convolution(module, standard)  # type: ignore[method-assign, arg-type]
        if norm is not None or standard is not None:
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


def _convolution(module: nn.Conv2d, standard: StandardWeight) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gain = None if standard.gain is None else getattr(module, standard.gain)
        rest = module._buffers.get("rest")
        weight = torch.ops.nni_gconv.standard_weight(
            module.weight, gain, rest, standard.eps, standard.factor, standard.count
        )
        return module._conv_forward(padded(x, module, standard), weight, module.bias)

    return forward
