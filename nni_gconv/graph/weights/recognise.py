"""Which convolutions standardise their filters: found by what they compute, not by their names."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nni_gconv.graph.weights.alike import Known, once
from nni_gconv.graph.weights.standard import (
    KeptStandardConv2d,
    StandardWeight,
    padded,
    standardise,
)

_EXACT = 1e-12
_PLAIN = ("weight", "bias")
#: A forward that standardises says one of these; others are not run, they may keep what they see.
_SPREADS = frozenset(
    {"batch_norm", "group_norm", "instance_norm", "layer_norm", "mean", "std", "std_mean", "var",
     "var_mean"}
)  # fmt: skip
#: Epsilons that are written in forwards.
_WRITTEN = (1e-5, 1e-6)
#: Filters that tell how all are made.
_FEW = 8


def find_standard(module: nn.Module, known: Known | None = None) -> StandardWeight | None:
    """Say how a convolution standardises its filters; None: it does not, or does more than that.

    Parameters
    ----------
    module : nn.Module
    known : dict, optional
        What was found of others, see :func:`nni_gconv.graph.weights.alike.once`.

    Examples
    --------
    >>> find_standard(nn.Conv2d(3, 8, 3)) is None
    True
    """
    if isinstance(module, KeptStandardConv2d):
        return module.standard
    if not isinstance(module, nn.Conv2d) or not _may_be(module):
        return None
    return once(known, module, _tried)


def _tried(module: nn.Conv2d) -> StandardWeight | None:
    """Try a few of the filters; where that does not do, all of them."""
    every = module.out_channels
    sizes = dict.fromkeys([min(_FEW, every) if module.groups == 1 else every, every])
    return next((found for n in sizes if (found := _tried_with(module, n)) is not None), None)


def _tried_with(module: nn.Conv2d, filters: int) -> StandardWeight | None:
    generator = torch.Generator().manual_seed(0)
    new: dict[int, Any] = {}
    try:
        for parameter in module.parameters():
            shape = list(parameter.shape)
            shape[shape.index(module.out_channels)] = filters
            numbers = torch.rand(shape, generator=generator).double() - 0.4
            new[id(parameter)] = nn.Parameter(numbers)
        copied = copy.deepcopy(module, new).eval()
        copied.out_channels = filters
        # Of a wide range, so that no epsilon is like another.
        scales = torch.logspace(-3, 0, len(copied.weight), dtype=torch.float64)
        copied.weight.data *= scales.view(-1, 1, 1, 1)
        x = torch.rand(2, copied.in_channels, *_sides(copied), generator=generator).double()
        with torch.no_grad(), _Weights() as seen:
            expected = copied(x)
            found = _matching(copied, seen.last) if seen.count == 1 else None
            padding = [replace(found, same=same) for same in (False, True)] if found else []
            return next((s for s in padding if _agrees(copied, s, x, expected)), None)
    except Exception:  # it cannot be copied, or takes other inputs
        return None


def _sides(module: nn.Conv2d) -> list[int]:
    """Sides of a small image, one of them odd, that has a few places for the kernel."""
    settings = zip(module.kernel_size, module.dilation, module.stride, strict=True)
    least = max((size - 1) * apart + 2 * stride + 2 for size, apart, stride in settings)
    return [least, least + 3]


def _may_be(module: nn.Conv2d) -> bool:
    """Tell whether a module has what such a convolution has, and nothing else."""
    return (
        type(module).forward is not nn.Conv2d.forward
        and "forward" not in vars(module)
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and len(_more(module)) <= 1
        and all(module._parameters[n].numel() == module.out_channels for n in _more(module))  # type: ignore[union-attr]
        and not any(True for _ in module.buffers())
        and not any(True for _ in module.children())
        and not _SPREADS.isdisjoint(_said(type(module)))
    )


def _said(kind: type) -> set[str]:
    """Names in the code of a kind of convolution, torch's own left out."""
    own = [vars(base) for base in kind.__mro__[: kind.__mro__.index(nn.Conv2d)]]
    functions = [inspect.unwrap(v) for one in own for v in one.values() if inspect.isfunction(v)]
    return {name for function in functions for name in function.__code__.co_names}


def _more(module: nn.Module) -> list[str]:
    return [n for n, p in module._parameters.items() if p is not None and n not in _PLAIN]


class _Weights(TorchFunctionMode):
    """Notes the weight that a convolution is run with."""

    count, last = 0, torch.empty(0)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            self.count += 1
            self.last = kwargs["weight"] if "weight" in kwargs else args[1]
        return func(*args, **kwargs)


def _matching(module: nn.Conv2d, weight: Tensor) -> StandardWeight | None:
    """Find epsilon and factors by which the weight follows from the module's own."""
    floats = [v for v in vars(module).values() if isinstance(v, float) and 0 < v < 0.1]
    count = module.weight[0].numel()
    gain = next(iter(_more(module)), None)
    for eps in dict.fromkeys([*floats, *_WRITTEN]):
        plain = standardise(module.weight, None, None, eps, 1.0, count)
        scale = weight.flatten(1)[:, 0] / plain.flatten(1)[:, 0]
        if gain is not None:
            scale = scale / getattr(module, gain).flatten()
        factor = float(scale[0])
        gains = None if gain is None else getattr(module, gain)
        if _same(standardise(module.weight, gains, None, eps, factor, count), weight):
            return StandardWeight(eps, factor, gain, False, count)
    return None


def _agrees(module: nn.Conv2d, standard: StandardWeight, x: Tensor, expected: Tensor) -> bool:
    """Tell whether the module is that and nothing else."""
    gain = None if standard.gain is None else getattr(module, standard.gain)
    weight = standardise(module.weight, gain, None, standard.eps, standard.factor, standard.count)
    got = module._conv_forward(padded(x, module, standard), weight, module.bias)
    return got.shape == expected.shape and _same(got, expected)


def _same(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).abs().max()) <= _EXACT * float(expected.abs().max())
