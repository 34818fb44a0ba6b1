"""Training loops that belong to someone else: a pruner acts while they run.

NNI's evaluators run the training; here it runs by itself (a loop of one's own, Lightning, a Hugging
Face Trainer), and only the optimizer is watched. ``pruner.training()`` is how it is used.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from nni.compression.utils import Evaluator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from nni_gconv.errors import ConfigError


class PlainLoop(Evaluator):
    """What a pruner has to know of a training that it does not run.

    Parameters
    ----------
    optimizer : Optimizer, optional
        The one whose steps count, made from the parameters of the model, wrapped or not. Default:
        the first that takes a step with some of them.
    steps_per_epoch : int, optional
        Steps of that optimizer in one epoch.
    dummy_input : optional
        Example arguments of the model's forward.

    Examples
    --------
    >>> PlainLoop(steps_per_epoch=100).steps_per_epoch
    100
    """

    _initialization_complete = True

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        steps_per_epoch: int | None = None,
        dummy_input: Any = None,
    ) -> None:
        self._optimizers = [] if optimizer is None else [optimizer]
        self.steps_per_epoch = steps_per_epoch
        self.dummy_input = dummy_input
        self.steps = 0
        self._before: list[Callable[[], Any]] = []
        self._after: list[Callable[[], Any]] = []
        self._hooks_set: list[RemovableHandle] = []
        self._model: nn.Module | None = None

    def bind_model(self, model: nn.Module, param_names_map: dict[str, str] | None = None) -> None:
        """Watch optimizers from now on; one that was given has to train the model."""
        self._model = model
        for optimizer in self._optimizers:
            if not self._trains(optimizer):
                raise ConfigError("training: the optimizer has none of the model's parameters")
        self._hooks_set = [
            register_optimizer_step_pre_hook(self._on_step),
            register_optimizer_step_post_hook(self._on_stepped),
        ]

    def unbind_model(self) -> None:
        """Leave every optimizer alone again."""
        for handle in self._hooks_set:
            handle.remove()
        self._hooks_set, self._before, self._after = [], [], []
        self._model = None

    def patch_optimizer_step(
        self, before_step_tasks: list[Callable], after_step_tasks: list[Callable]
    ) -> None:
        """Run tasks before and after each step of the optimizer."""
        self._before += before_step_tasks
        self._after += after_step_tasks

    @property
    def _lr_schedulers(self) -> list[LRScheduler]:
        """Schedulers of the optimizer: whoever made them keeps them, and no optimizer knows of its.

        A group that is split needs a rate in each of them.
        """
        # By their type: to ask an object for its class may run its code.
        known = [one for one in gc.get_objects() if issubclass(type(one), LRScheduler)]
        return [one for one in known if self._is_first(one.optimizer)]

    def _is_first(self, optimizer: Any) -> bool:
        """Tell whether an optimizer is the one watched, or holds it as accelerate's does."""
        inner = getattr(optimizer, "optimizer", optimizer)
        return bool(self._optimizers) and self._optimizers[0] in (optimizer, inner)

    def get_dummy_input(self) -> Any:
        """Return the example input that was given."""
        return self.dummy_input

    def _trains(self, optimizer: Optimizer) -> bool:
        known = {id(p) for p in self._model.parameters()} if self._model is not None else set()
        return any(id(p) in known for group in optimizer.param_groups for p in group["params"])

    def _watched(self, optimizer: Optimizer) -> bool:
        if not self._optimizers and self._trains(optimizer):
            self._optimizers.append(optimizer)
        return bool(self._optimizers) and self._optimizers[0] is optimizer

    def _on_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._watched(optimizer):
            for task in self._before:
                task()

    @torch.no_grad()
    def _on_stepped(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._watched(optimizer):
            self.steps += 1
            for task in self._after:
                task()


class EpochLoop(PlainLoop):
    """The same where whoever trains says when an epoch begins and ends, as callbacks do."""

    def __init__(self, optimizer: Optimizer, epochs: int, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self.epochs = epochs
        self._tasks: list[tuple[Callable[[int, int], None], Callable[[int, int], None]]] = []

    def patch_epochs(
        self, before: Callable[[int, int], None], after: Callable[[int, int], None]
    ) -> None:
        """Run tasks around epochs, as :class:`nni_gconv.training.evaluator.LoopEvaluator` does."""
        self._tasks.append((before, after))

    def track(self, thing: Any) -> None:
        """Whoever trains keeps checkpoints; nothing is kept here."""

    def unbind_model(self) -> None:
        """Forget the tasks too."""
        self._tasks = []
        super().unbind_model()

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""
        for before, _ in self._tasks:
            before(epoch, self.epochs)

    def end_epoch(self, epoch: int) -> None:
        """Its steps are taken."""
        for _, after in self._tasks:
            after(epoch, self.epochs)
