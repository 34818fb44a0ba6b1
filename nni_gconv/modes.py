"""Looking at a model without leaving a trace: eval mode, and every flag back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
def _flags_restored(*models: nn.Module) -> Iterator[None]:
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
