"""A network and its form for inference must give the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nni_gconv.errors import SpeedupError
from nni_gconv.profiling import device_of, measuring, run, to_device

#: Largest difference relative to the largest output, as of a speedup.
_EXACT, _SINGLE = 1e-9, 1e-4


def check_equal(
    model: nn.Module, fast: nn.Module, build: Callable[[nn.Module], nn.Module], dummy_input: Any
) -> float:
    """Compare a network with its form for inference on random inputs.

    Parameters
    ----------
    model, fast : nn.Module
        Compared in their own precision.
    build : callable
        Makes `fast` of `model`: done once more in float64.
    dummy_input : Tensor, tuple or dict
        Gives shapes.

    Returns
    -------
    float
        Largest difference in float64, relative to the largest output.

    Raises
    ------
    SpeedupError
        They differ by more than 1e-9 in float64, or 1e-4 in their own precision if that is
        float32.
    """
    inputs = to_device(_random(dummy_input), device_of(model))
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if types <= {torch.float32, torch.float64}:
        _compare(model, fast, inputs, _SINGLE)
    precise = copy.deepcopy(model).double()
    doubled = pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
    try:
        with measuring(precise):
            run(precise, doubled)
    except RuntimeError:  # creates float32 tensors of its own
        return _compare(model, fast, inputs, _SINGLE)
    return _compare(precise, build(precise), doubled, _EXACT)


def _random(dummy_input: Any) -> Any:
    generator = torch.Generator().manual_seed(0)

    def randomise(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value.dtype)

    return pytree.tree_map(randomise, dummy_input)


def _compare(model: nn.Module, fast: nn.Module, inputs: Any, tolerance: float) -> float:
    with measuring(model, fast):
        torch.manual_seed(0)
        expected = _tensors(run(model, inputs))
        torch.manual_seed(0)
        got = _tensors(run(fast, inputs))
    worst = max((_difference(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
    if not worst <= tolerance:
        raise SpeedupError(
            f"optimize: the network in its quickest form differs by {worst:.1e} of its largest "
            "output; this is a bug, use the network as it was"
        )
    return worst


def _tensors(result: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def _difference(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = float(expected.abs().max()) or 1.0
    return float((expected - got).abs().max()) / scale
