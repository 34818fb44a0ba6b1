"""Running a model once on an example input without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nni_gconv.compat import type_remedy
from nni_gconv.errors import ConfigError, check_model

# What a model is given: one tensor, a tuple of positional or a dict of keyword arguments.
DummyInput = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def run(model: Callable[..., Any], dummy_input: DummyInput) -> Any:
    """Call a model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    try:
        if isinstance(dummy_input, Mapping):
            return model(**dummy_input)
        if isinstance(dummy_input, tuple | list):
            return model(*dummy_input)
        return model(dummy_input)
    except RuntimeError as error:
        remedy = type_remedy(model, dummy_input) if isinstance(model, nn.Module) else ""
        if not remedy:
            raise
        raise ConfigError(f"{type(model).__name__} does not run{remedy}") from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer, the CPU if it has none."""
    check_model(model)
    for tensor in chain(model.parameters(), model.buffers()):  # the first is enough
        return tensor.device
    return torch.device("cpu")


def to_device(dummy_input: Any, device: torch.device) -> Any:
    """Move every tensor of an input to `device`."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, _plain(dummy_input))


def _plain(dummy_input: Any) -> Any:
    # Only real dicts are containers to torch's pytrees.
    return dict(dummy_input) if isinstance(dummy_input, Mapping) else dummy_input


def samples_in(inputs: DummyInput) -> int | None:
    """Return the length of the first dimension of the first tensor that has one, None without."""
    leaves = tree_leaves(_plain(inputs))
    return next((x.shape[0] for x in leaves if isinstance(x, Tensor) and x.ndim), None)


def batch_of(dummy_input: DummyInput) -> int:
    """Return the length of the first dimension of the first tensor that has one.

    Raises
    ------
    ConfigError
        There is no tensor, or the batch is empty.
    """
    tensors = [x for x in tree_leaves(_plain(dummy_input)) if isinstance(x, Tensor)]
    if not tensors:
        raise ConfigError(
            "dummy_input: holds no tensor; give a tensor, or a tuple or dict of arguments"
        )
    batch = samples_in(tensors)
    if batch == 0:
        raise ConfigError("dummy_input: the batch is empty")
    return batch or 1


def with_batch(dummy_input: DummyInput, batch_size: int) -> Any:
    """Repeat or cut every tensor of an input that has the batch as first dimension."""
    batch = batch_of(dummy_input)

    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != batch:
            return value
        index = torch.arange(batch_size, device=value.device) % batch
        return value.index_select(0, index)

    return tree_map(resize, _plain(dummy_input))


@contextmanager
def measuring(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode without gradients; every module gets its own flag back.

    torch's random state is put back as well, so that measuring never changes what a training run
    draws next.
    """
    flags = [(module, module.training) for model in models for module in model.modules()]
    cuda = {d.index for d in map(device_of, models) if d.type == "cuda" and d.index is not None}
    with torch.random.fork_rng(devices=sorted(cuda)), torch.no_grad():
        try:
            for model in models:
                model.eval()
            yield
        finally:
            for module, flag in flags:
                module.training = flag
