"""Which modules are nothing but a norm over channels: those of torch, and what computes the same.

Layer norms are written in many ways: with permutes around torch's own, with mean and variance by
hand, with a fast path. What a module computes tells more than how, so it is tried on numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from nni_gconv.graph.norms.kept_norm import ChannelNorm, KeptNorm, normalise
from nni_gconv.graph.weights import Known, once

#: Dimensions that are normalised over: the last, the second, all but the first.
_LAYOUTS = ((-1,), (1,), ())
_EXACT = 1e-12
#: Epsilon of response normalisations that is written in their forwards.
_WRITTEN = 1e-6


def find_norm(module: nn.Module, known: Known | None = None) -> ChannelNorm | None:
    """Say what norm over channels a module is; None: it is none, or more than that.

    Parameters
    ----------
    module : nn.Module
    known : dict, optional
        What was found of others, see :func:`nni_gconv.graph.weights.alike.once`.

    Examples
    --------
    >>> find_norm(nn.GroupNorm(1, 8))
    ChannelNorm(dims=(), eps=1e-05, centered=True, weight='weight', bias='bias', ...)
    >>> find_norm(nn.GroupNorm(2, 8)) is None
    True
    """
    if isinstance(module, KeptNorm):
        return module.norm
    forward = getattr(type(module), "forward", None)  # a ScriptModule's class has none
    weight = "weight" if getattr(module, "weight", None) is not None else None
    bias = "bias" if getattr(module, "bias", None) is not None else None
    if "forward" in vars(module):
        return None
    if forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        dims = tuple(range(-len(module.normalized_shape), 0))  # type: ignore[arg-type]
        centered = forward is nn.LayerNorm.forward
        return ChannelNorm(dims, module.eps, centered, weight, bias)  # type: ignore[arg-type]
    if forward is nn.GroupNorm.forward:
        single = module.num_groups == 1
        return ChannelNorm((), module.eps, True, weight, bias) if single else None  # type: ignore[arg-type]
    return once(known, module, _tried) if _may_be(module) else None


def _may_be(module: nn.Module) -> bool:
    """Tell whether a module has what a norm has, and nothing else."""
    own = [p for p in module._parameters.values() if p is not None]
    wide = {p.numel() for p in own}
    return (
        type(module).__module__.partition(".")[0] != "torch"
        and 1 <= len(own) <= 2
        and len(wide) == 1
        and next(iter(wide)) > 1
        and all(max(p.shape) == p.numel() for p in own)  # a value a channel, no kernels
        and not any(True for _ in module.buffers())
        and sum(1 for _ in module.parameters()) == len(own)
        and (len(own) == 2 or bool(_epsilons(module)))
    )


def _epsilons(module: nn.Module) -> list[float]:
    found = [v for v in vars(module).values() if isinstance(v, float) and 0 < v < 0.1]
    return list(dict.fromkeys(found))


def _tried(module: nn.Module) -> ChannelNorm | None:
    generator = torch.Generator().manual_seed(0)
    try:
        copied = copy.deepcopy(module).to("cpu", torch.float64).eval()
    except Exception:  # it holds what cannot be copied
        return None
    for parameter in copied.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
    width = next(copied.parameters()).numel()
    for shape in ((2, 3, 5, width), (2, width, 3, 5), (2, 3, width), (2, width, 3)):
        # Of a wide range, so that no epsilon is like another.
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        x = x * torch.logspace(-3, 0, 2, dtype=torch.float64).view(2, *[1] * (x.dim() - 1)) + 0.01
        try:
            with torch.no_grad():
                got = copied(x)
                found = next((n for n in _candidates(copied, x) if _is(n, copied, x, got)), None)
        except Exception:  # another layout
            continue
        if found is not None:
            return found
    return None


def _candidates(module: nn.Module, x: Tensor) -> Iterator[ChannelNorm]:
    names = [name for name, p in module._parameters.items() if p is not None]
    width = module._parameters[names[0]].numel()  # type: ignore[union-attr]
    affine = [(names[0], None), (None, names[0])] if len(names) == 1 else [names, names[::-1]]
    for dims, eps, centered, (weight, bias) in product(
        _LAYOUTS, _epsilons(module), (True, False), affine
    ):
        if x.shape[dims[0] if dims else 1] == width:
            yield ChannelNorm(dims, eps, centered, weight, bias)
    for dims, eps, (weight, bias) in product(
        _LAYOUTS[:2], [*_epsilons(module), _WRITTEN], affine if len(names) == 2 else ()
    ):
        if x.dim() > 3 and x.shape[dims[0]] == width:
            yield ChannelNorm(dims, eps, False, weight, bias, response=True)


def _is(norm: ChannelNorm, module: nn.Module, x: Tensor, got: object) -> bool:
    weight, bias = (None if n is None else getattr(module, n) for n in (norm.weight, norm.bias))
    over = norm.over(x.dim())
    y = normalise(x, weight, bias, over, norm.eps, norm.centered, response=norm.response)
    for child in module.children():
        y = child(y)
    if not isinstance(got, Tensor) or got.shape != y.shape:
        return False
    return float((y - got).abs().max()) <= _EXACT * float(y.abs().max())
