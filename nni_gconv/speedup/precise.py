"""Copies of a model that run in float64 and do not take twice its memory.

Of a VGG's 133 million parameters 103 are one layer's. A copy shares such large tensors with the
model; each is read in float64, and masked, while the operator that asks for it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.speedup.residual import copy_with

#: A tensor of so many numbers (8 MiB in float64) is shared.
LARGE = 2**20


class PreciseModel:
    """A copy of a model that runs in float64, or in a type that it is moved :meth:`to`.

    Parameters
    ----------
    model : nn.Module
        Left as it is; the copy shares what is :data:`LARGE`.
    whole : collection of str
        Names of parameters that are copied however large they are: because they are reckoned with,
        not only cut.
    """

    def __init__(self, model: nn.Module, whole: Collection[str] = ()) -> None:
        self._lent = {id(tensor) for tensor in _lendable(model, whole)}
        self.module = _copy(model, self._lent)
        self._masks: dict[int, Tensor] = {}
        self.to(torch.float64)

    def mask(self, kept: Mapping[str, Tensor], aliases: Mapping[str, tuple[str, ...]]) -> None:
        """Mask parameters: what is shared whenever it is read, the rest now."""
        shared, now = self._shared(), {}
        for name, mask in kept.items():
            tensor = _get(self.module, name)
            if id(tensor) in shared:
                self._masks[id(tensor)] = mask.to(tensor.device)
            else:
                now[name] = mask
        mask_parameters(self.module, now, aliases)

    def to(self, dtype: torch.dtype) -> None:
        """Move what is not shared to a type, and read the rest in it."""
        self._dtype = dtype
        for tensor in _floating(self.module):
            # What was cut from large tensors may be large: it stays in the model's type too.
            is_small = tensor.numel() < LARGE or tensor.dtype == torch.float64
            if is_small and id(tensor) not in self._lent:
                tensor.data = tensor.data.to(dtype)
        for module in filter(compat.is_scripted, self.module.modules()):
            module.to(dtype)

    def unshare(self) -> bool:
        """Copy and mask what is shared; tell whether anything was."""
        shared = {key: self._read(tensor) for key, tensor in self._shared().items()}
        for module in self.module.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in shared:
                    module._parameters[name] = nn.Parameter(shared[id(parameter)], False)
            for name, buffer in module._buffers.items():
                module._buffers[name] = shared.get(id(buffer), buffer)
        self._masks.clear()
        return bool(shared)

    def reading(self) -> AbstractContextManager[Any]:
        """Let the module read what is shared in its type."""
        shared = self._shared()
        return _Reading(shared, self._read) if shared else nullcontext()

    def _shared(self) -> dict[int, Tensor]:
        return {
            id(tensor): tensor
            for tensor in _floating(self.module)
            if tensor.dtype != self._dtype or id(tensor) in self._masks
        }

    def _read(self, tensor: Tensor) -> Tensor:
        read = tensor.detach().to(self._dtype, copy=True)
        mask = self._masks.get(id(tensor))
        return read if mask is None else read.masked_fill_(~mask, 0)


class _Reading(TorchFunctionMode):
    """Gives every operator tensors of a set as they are to be read, and remembers the last."""

    def __init__(self, shared: Collection[int], read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._shared, self._read = shared, read
        self._last: tuple[int, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(self._given, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _given(self, value: Any) -> Any:
        if id(value) not in self._shared:
            return value
        if self._last is None or self._last[0] != id(value):
            self._last = None  # goes before the next one comes
            self._last = id(value), self._read(value)
        return self._last[1]


def mask_parameters(
    model: nn.Module, kept: Mapping[str, Tensor], aliases: Mapping[str, tuple[str, ...]]
) -> None:
    """Give a model masked parameters; a copy that shares the old ones keeps them unmasked."""
    for name, mask in kept.items():
        old = _get(model, name)
        made = old.detach().masked_fill(~mask.to(old.device), 0)
        if isinstance(old, nn.Parameter):
            made = nn.Parameter(made, requires_grad=old.requires_grad)
        for alias in aliases[name]:
            path, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(path), attribute, made)


def _lendable(model: nn.Module, whole: Collection[str]) -> list[Tensor]:
    """List the large tensors that copies may share; to biases and norms a plan may add."""
    asked = {id(_get(model, name)) for name in whole}
    large = (t for t in _floating(model) if t.numel() >= LARGE and t.dim() > 1)
    return [tensor for tensor in large if id(tensor) not in asked]


def _copy(model: nn.Module, lent: Collection[int]) -> nn.Module:
    made: dict[int, Tensor] = {}
    for tensor in _floating(model):
        copied = tensor
        if id(tensor) not in lent:
            copied = tensor.detach().to(torch.float64, copy=True)
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        made[id(tensor)] = copied
    # What is given counts as copied: no copy in the old type is made on the way.
    return copy_with(model, made)


def _floating(model: nn.Module) -> list[Tensor]:
    """List the floating-point tensors; not those of TorchScript, which are new ones when asked."""
    found = {
        id(tensor): tensor
        for module in model.modules()
        if not compat.is_scripted(module)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and tensor.is_floating_point()
    }
    return list(found.values())


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), attribute)
    return tensor
