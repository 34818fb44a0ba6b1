"""The layers of a network that have several forms, in the order they run, with their inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nni_gconv.groupconv.forms.form import forms_of
from nni_gconv.groupconv.gather import gathers_of
from nni_gconv.profiling import device_of, measuring, run, to_device


@dataclass(frozen=True)
class Unit:
    """A layer, or a layer between gathers.

    Attributes
    ----------
    name : str
        Dotted name.
    module : nn.Module
        What has this name.
    shape : tuple of int
        Of its first input.
    calls : int
        How often it runs in one forward pass.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    calls: int


def find_units(model: nn.Module, dummy_input: Any) -> list[Unit]:
    """Run a model once and list its layers that have forms, in the order they first run.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    >>> [(unit.name, unit.shape) for unit in find_units(net, torch.zeros(1, 2, 5, 5))]
    [('1', (1, 2, 5, 5)), ('2', (1, 4, 5, 5))]
    """
    modules = {m: n for n, m in model.named_modules() if n and forms_of(m)}
    inside = {module.conv for module in modules if gathers_of(module)}
    shapes = input_shapes(model, [m for m in modules if m not in inside], dummy_input)
    return [Unit(modules[m], m, found[0], len(found)) for m, found in shapes.items()]


def input_shapes(
    model: nn.Module, layers: Iterable[nn.Module], dummy_input: Any
) -> dict[nn.Module, list[tuple[int, ...]]]:
    """Run a model once; return the shapes of the inputs that each layer is called on, in order."""
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor):
            shapes.setdefault(module, []).append(tuple(x.shape))

    handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        with measuring(model):
            run(model, to_device(dummy_input, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
