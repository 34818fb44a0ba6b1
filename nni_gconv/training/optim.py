"""Optimizers and learning-rate schedules from their settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nni_gconv.errors import ConfigError
from nni_gconv.training.proxsgd import ProxSGD
from nni_gconv.training.settings import TrainSettings


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Split the trainable parameters by whether weight decay applies to them.

    Biases and normalisation weights are the parameters with fewer than two dimensions.

    Returns
    -------
    list of dict
        One or two groups, in the order of ``model.named_parameters()``.

    Raises
    ------
    ConfigError
        No parameter of the model requires a gradient.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("the model has no parameter that requires a gradient, nothing to train")
    decay = settings.optimizer.weight_decay
    if not settings.no_decay_norm_bias:
        return [{"params": trainable, "weight_decay": decay}]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module,
    settings: TrainSettings,
    wrap: Callable[[Any], Any] = lambda cls: cls,
) -> Optimizer:
    """Build the optimizer of `settings` for the parameters of `model`.

    Parameters
    ----------
    model : nn.Module
        Already on its device.
    settings : TrainSettings
        ``optimizer`` and ``no_decay_norm_bias`` are read.
    wrap : callable, optional
        Applied to the class before it is called; NNI's evaluator wants ``nni.trace``.

    Examples
    --------
    >>> optimizer = make_optimizer(nn.Linear(2, 2), TrainSettings(no_decay_norm_bias=True))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0005, 0.0]
    """
    chosen = settings.optimizer
    arguments: dict[str, Any] = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
    kind: Any = ProxSGD if chosen.name == "ProxSGD" else getattr(torch.optim, chosen.name)
    if kind is ProxSGD:
        shared = ("lr", "momentum", "beta", "normalization", "adaptive", "exact_zeros")
        arguments = {name: getattr(chosen, name) for name in shared}
    elif chosen.name == "SGD":
        if chosen.nesterov and chosen.momentum == 0:
            raise ConfigError("optimizer.nesterov: true needs optimizer.momentum above 0")
        arguments |= {"momentum": chosen.momentum, "nesterov": chosen.nesterov}
    else:
        arguments["betas"] = tuple(chosen.betas)
    optimizer: Optimizer = wrap(kind)(parameter_groups(model, settings), **arguments)
    return optimizer


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step as a fraction of the highest, a function of the step alone.

    With `t` the steps since the warm-up and `T` the steps after it:

    - warm-up (linear, per step): ``(step + 1) / warmup_steps``;
    - ``cosine`` (per step): ``floor + (1 - floor) * (1 + cos(pi * t / T)) / 2``;
    - ``multistep`` (per epoch): ``gamma`` to the number of milestones passed, at least ``floor``;
    - ``constant``: 1.

    Attributes
    ----------
    name : str
        ``cosine``, ``multistep`` or ``constant``.
    total_steps, warmup_steps : int
        Length of the whole run and of its warm-up. Steps beyond the end keep the last rate.
    milestones : tuple of int
        Steps at which ``gamma`` is multiplied on.
    gamma, floor : float
        Factor at a milestone; lowest fraction after the warm-up.

    Examples
    --------
    >>> schedule = Schedule("cosine", total_steps=4)
    >>> [round(schedule(step), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    floor: float = 0.0

    @classmethod
    def from_settings(
        cls, settings: TrainSettings, steps_per_epoch: int, total_steps: int
    ) -> Schedule:
        """Translate warm-up and milestones of `settings` from epochs into steps."""
        chosen = settings.schedule
        return cls(
            chosen.name,
            total_steps,
            round(chosen.warmup * steps_per_epoch),
            tuple(m * steps_per_epoch for m in chosen.milestones),
            chosen.gamma,
            min(1.0, chosen.min_lr / settings.optimizer.lr),
        )

    def __call__(self, step: int) -> float:
        """Return the fraction of the highest learning rate at `step` (from 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "cosine":
            length = max(1, self.total_steps - self.warmup_steps)
            part = min(1.0, (step - self.warmup_steps) / length)
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * part)) / 2
        if self.name == "multistep":
            return max(self.floor, self.gamma ** sum(m <= step for m in self.milestones))
        return 1.0


class ScheduleLR(LambdaLR):
    """torch's scheduler around a :class:`Schedule`, set by step number instead of by counting.

    The loop calls :meth:`seek` before each step. Nothing has to be stored for a resume, and NNI
    gets the scheduler object it wants.
    """

    def seek(self, step: int) -> None:
        """Give every parameter group of the optimizer the learning rate of `step`."""
        self.last_epoch = step
        factors = [schedule(step) for schedule in self.lr_lambdas]
        for group, base, factor in zip(
            self.optimizer.param_groups, self.base_lrs, factors, strict=True
        ):
            group["lr"] = base * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
