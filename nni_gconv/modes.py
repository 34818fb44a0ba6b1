"""Looking at a model without leaving a trace: modes, flags and random numbers go on as before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in evaluation mode, then give each module its own mode back."""
    with _flags_restored(*models):
        for model in models:
            model.eval()
        yield


@contextmanager
def forward_of_training(model: nn.Module) -> Iterator[None]:
    """Let a model run what it runs in training, with norms and dropout as in evaluation.

    Torch's own layers stay in evaluation mode: a batch of one image has no statistics in training
    mode, and no statistic is touched.
    """
    with _flags_restored(model):
        for module in model.modules():
            module.training = not type(module).__module__.startswith("torch.nn.")
        yield


@contextmanager
def drawing_alike(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Let a forward draw the same numbers each time, and all generators go on as if it had not.

    ``torch.manual_seed`` seeds every kind of device: where CUDA has not begun yet it would begin
    with this seed in place of the user's, and until then each call keeps its stack in memory.

    Parameters
    ----------
    seed : int
    devices : iterable of torch.device
        Those that the forward runs on.
    """
    import torch

    gpus = {device for device in devices if device.type == "cuda"}
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _flags_restored(*models: nn.Module) -> Iterator[None]:
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
