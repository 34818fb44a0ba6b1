"""Accuracy and loss of a network, by a function of the user's or on batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from nni_gconv.analysis.curves import Score
from nni_gconv.errors import ConfigError
from nni_gconv.modes import evaluating
from nni_gconv.profiling import device_of
from nni_gconv.training import evaluate as measure
from nni_gconv.training.data import Loaders

Batches = Iterable[tuple[Tensor, Tensor]]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def scorer(model: nn.Module, evaluate: Evaluate | Loaders | Batches) -> Callable[[], Score]:
    """Return a function that scores `model` as it is when called, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        The model.
    evaluate : callable, Loaders or iterable of (images, labels)
        See :func:`nni_gconv.sensitivity`.

    Raises
    ------
    ConfigError
        `evaluate` is none of these, or what it returns has no accuracy or loss.
    """
    if isinstance(evaluate, Loaders):
        evaluate = evaluate.val
    if callable(evaluate):
        return lambda: _called(model, evaluate)
    if not isinstance(evaluate, Iterable):
        raise ConfigError(
            "evaluate: expected a function of the model, or batches of (images, labels); "
            f"got {type(evaluate).__name__}"
        )
    if isinstance(evaluate, Iterator):
        raise ConfigError("evaluate: an iterator gives its images once; give a list or a loader")
    batches = _OnDevice(evaluate, device_of(model))

    def score() -> Score:
        found = measure(model, batches, device=batches.device)
        return Score(found.accuracy, found.loss)

    return score


def _called(model: nn.Module, evaluate: Evaluate) -> Score:
    with evaluating(model), torch.no_grad():
        found = evaluate(model)
    values: list[float] = []
    for key in ("accuracy", "loss"):
        value = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, Real):
            raise ConfigError(
                'evaluate: expected {"accuracy": number, "loss": number}, '
                f"{key} is {type(value).__name__}"
            )
        values.append(float(value))
    if not 0 <= values[0] <= 1:
        raise ConfigError(f"evaluate: an accuracy of {values[0]:g} is not a fraction of 1")
    return Score(*values)


class _OnDevice:
    """Batches, moved to where the model is."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            yield images.to(self.device), labels.to(self.device)
