"""What a pruner does while somebody else's trainer runs, whoever that is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nni_gconv.errors import ConfigError
from nni_gconv.pruning import EpochLoop, TrainedPruner
from nni_gconv.shrinking import example_of, read_request
from nni_gconv.speedup import ModelSpeedup, SpeedupReport


class PruningSession:
    """One training with a pruner in it.

    Parameters
    ----------
    method : str or class
        A method by name, or a pruner's class.
    budget : mapping
        ``{"macs": 0.5}``; also ``params`` and ``latency``.
    x : Tensor, tuple, dict or shape, optional
        Example arguments of the model's forward; the trainer may know one.
    keep : str or sequence of str, optional
        Modules whose layers keep all their outputs.
    speedup : bool, default True
        Make the network small, in place, when the training ends; else it is left masked and the
        masks are in ``masks``.
    **options
        Of the method: ``schedule="cubic"``, ``strength=1e-3``, ``calibration=loader``, ...

    Attributes
    ----------
    pruner : TrainedPruner or None
        Made when the training begins.
    masks : dict or None
        Those that hold, when it has ended.
    report : SpeedupReport or None
        What the speedup did; ``print(callback.report)``.
    """

    def __init__(
        self,
        method: str | type[TrainedPruner],
        budget: dict[str, Any],
        x: Any = None,
        *,
        keep: Any = (),
        speedup: bool = True,
        **options: Any,
    ) -> None:
        self.method, self.budget, self.x, self.keep = method, dict(budget), x, keep
        self.speedup, self.options = speedup, options
        self.pruner: TrainedPruner | None = None
        self.masks: dict[str, Any] | None = None
        self.report: SpeedupReport | None = None
        self._loop: EpochLoop | None = None
        self._stack = ExitStack()

    def begin(
        self, model: nn.Module, optimizer: Optimizer, epochs: int, steps_per_epoch: int
    ) -> None:
        """Make the pruner, which wraps the model; call it when there is an optimizer.

        Parameters
        ----------
        model : nn.Module
            What is trained.
        optimizer : Optimizer
            The one whose steps count.
        epochs, steps_per_epoch : int
            How long the training is, in steps of the optimizer.

        Raises
        ------
        ConfigError
            There is no example input, or the method's own complaint.
        """
        if self.pruner is not None:
            raise ConfigError("PruningCallback: has trained a model already; make a new one")
        if self.x is None:
            raise ConfigError(
                "PruningCallback: x= is needed, example arguments of the forward or their shape"
            )
        self.x = example_of(model, self.x)
        has_images = "calibration" in self.options
        request = read_request(model, self.budget, None, self.method, self.keep, has_images)
        loop = EpochLoop(optimizer, epochs, steps_per_epoch=steps_per_epoch, dummy_input=self.x)
        self.pruner = request.method.make(
            model, request.entries, loop, dummy_input=self.x, budget=request.budget, **self.options
        )
        self.pruner.check_training(epochs)
        self._loop = loop
        self._stack.enter_context(self.pruner.acting_in(loop, epochs))

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""
        if self._loop is not None:
            self._loop.begin_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        """Its steps are taken."""
        if self._loop is not None:
            self._loop.end_epoch(epoch)

    def end(self, model: nn.Module) -> None:
        """Make the final masks, and the network small."""
        if self.pruner is None or self.masks is not None:
            return
        self._stack.close()
        self.masks = self.pruner.get_masks()
        if not self.speedup:
            return
        self.pruner.unwrap_model()
        training = model.training
        surgery = ModelSpeedup(model, self.x, self.masks)
        surgery.speedup_model()
        model.train(training)
        self.report = surgery.report()

    def stop(self, error: BaseException) -> None:
        """Leave the model as it is: the training has failed."""
        if self.pruner is not None and self.masks is None:
            self._stack.__exit__(type(error), error, error.__traceback__)
            self.pruner.unwrap_model()
