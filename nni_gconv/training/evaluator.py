"""NNI's evaluator around our training loop.

NNI's training-time pruners do not train: they patch the training step (to add to the loss) and
the optimizer's ``step`` (to act after it), then ask the evaluator to train. What it then runs is
the same :class:`~nni_gconv.training.engine.Loop` that :func:`~nni_gconv.training.loop.fit` runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nni
import torch
from nni.compression import TorchEvaluator
from nni.compression.base.target_space import TargetType
from nni.compression.base.wrapper import ModuleWrapper
from torch import nn
from torch.optim import Optimizer

from nni_gconv.training.data import Loaders
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.engine import (
    EpochTask,
    FitResult,
    Loop,
    Stateful,
    TrainingStep,
    default_training_step,
)
from nni_gconv.training.logs import MetricLog
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.optim import Schedule, ScheduleLR, make_optimizer
from nni_gconv.training.settings import TrainSettings


def mask_sparsity(model: nn.Module) -> float:
    """Return the share of zeros in all parameter masks of an NNI-wrapped model; 0 without any."""
    zeros = total = 0
    for module in model.modules():
        if not isinstance(module, ModuleWrapper):
            continue
        for space in module.pruning_target_spaces.values():
            if space.type is TargetType.PARAMETER and space.mask is not None:
                zeros += int((space.mask == 0).sum())
                total += space.mask.numel()
    return zeros / total if total else 0.0


class LoopEvaluator(TorchEvaluator):
    """A TorchEvaluator whose training is :class:`~nni_gconv.training.engine.Loop`.

    Made by :func:`make_evaluator`, which documents the parameters.
    """

    result: FitResult | None
    """What the last training that NNI asked for came to; None before it."""

    def __init__(
        self,
        model: nn.Module,
        loaders: Loaders,
        settings: TrainSettings,
        optimizer: Optimizer | None,
        options: dict[str, Any],
    ) -> None:
        self._loaders, self._settings, self._options = loaders, settings, options
        self._steps = len(loaders.train)
        self._calls = 0
        self._stateful: list[Stateful] = []
        self._epoch_tasks: list[tuple[EpochTask, EpochTask]] = []
        self.result = None
        device = options["device"]
        model.to(device)
        if optimizer is None:
            optimizer = make_optimizer(model, settings, wrap=nni.trace)
        super().__init__(
            training_func=self._train,
            optimizers=optimizer,
            training_step=default_training_step(settings, options["teacher"]),
            lr_schedulers=nni.trace(ScheduleLR)(optimizer, self._schedule(None)),
            # Two images: batch norm in training mode cannot work on one.
            dummy_input=torch.zeros(2, *loaders.input_shape, device=device),
            evaluating_func=self._accuracy,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return self._steps

    @property
    def log(self) -> MetricLog | None:
        """Where the main process writes its metrics, if it does."""
        log: MetricLog | None = self._options["log"]
        return log

    def track(self, thing: Stateful) -> None:
        """Keep the state of `thing` (a pruner's counters, say) in the checkpoint as well."""
        if not any(known is thing for known in self._stateful):
            self._stateful.append(thing)

    def patch_epochs(self, before: EpochTask, after: EpochTask) -> None:
        """Run tasks around epochs until the model is unbound, as NNI patches optimizer steps.

        Parameters
        ----------
        before : callable
            ``before(epoch, epochs)`` with the number of the epoch, from 0, and how many there are.
        after : callable
            ``after(epoch, epochs)`` once its steps are taken; what it changes is evaluated and
            written to the checkpoint of that epoch. An epoch that ``max_steps`` cuts short has no
            end.
        """
        self._epoch_tasks.append((before, after))

    def unbind_model(self) -> None:
        """Forget the model and all that was patched for it."""
        self._epoch_tasks.clear()
        super().unbind_model()

    def _schedule(self, steps: int | None) -> Schedule:
        total = self._settings.epochs * self._steps if steps is None else steps
        return Schedule.from_settings(self._settings, self._steps, total)

    def _train(
        self,
        model: nn.Module,
        optimizers: Optimizer,
        training_step: TrainingStep,
        lr_schedulers: ScheduleLR,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        """Train for NNI: its wrapped model, patched optimizer and patched training step."""
        epochs = self._settings.epochs if max_epochs is None else max_epochs
        if max_steps is not None:
            needed = math.ceil(max_steps / self._steps)
            epochs = needed if max_epochs is None else min(epochs, needed)
            max_steps = min(max_steps, epochs * self._steps)
        # The schedule spans what NNI asked for, so that it always comes to its end.
        schedule = self._schedule(epochs * self._steps if max_steps is None else max_steps)
        # A pruner may have split the parameter groups since the scheduler was made.
        lr_schedulers.lr_lambdas = [schedule] * len(optimizers.param_groups)
        lr_schedulers.base_lrs = [group["initial_lr"] for group in optimizers.param_groups]
        self._calls += 1
        options = dict(self._options)
        if self._calls > 1:
            options["stage"] += f"-{self._calls}"
            options["directory"] /= f"call-{self._calls}"
        loop = Loop(
            model=model,
            loaders=self._loaders,
            settings=self._settings,
            optimizer=optimizers,
            scheduler=lr_schedulers,
            training_step=training_step,
            epochs=epochs,
            max_steps=max_steps,
            # A pruner that counts steps is collecting something: it needs them all again.
            checkpoints=max_steps is None,
            stateful=tuple(self._stateful),
            epoch_tasks=tuple(self._epoch_tasks),
            **options,
        )
        loop.run()
        if loop.history:
            self.result = loop.result()

    def _accuracy(self, model: nn.Module) -> float:
        metrics = evaluate(
            model,
            self._loaders.val,
            device=self._options["device"],
            amp=self._settings.amp,
            channels_last=self._settings.channels_last,
            distributed=self._options["distributed"],
        )
        return metrics.accuracy


def make_evaluator(  # noqa: PLR0913 - one argument an option
    model: nn.Module,
    loaders: Loaders,
    settings: TrainSettings,
    *,
    directory: Path,
    device: torch.device | str,
    seed: int = 0,
    stage: str = "sparsify",
    log: MetricLog | None = None,
    progress: bool = True,
    resume: bool = False,
    optimizer: Optimizer | None = None,
    teacher: nn.Module | None = None,
    extra_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
    after_step: Callable[[], None] | None = None,
    distributed: Distributed | None = None,
) -> LoopEvaluator:
    """Build the ``evaluator=`` of a training-time pruner.

    Parameters
    ----------
    model : nn.Module
        The network that will be given to the pruner, not wrapped yet; moved to `device`.
    loaders, settings, directory, device, seed, log, progress, after_step, distributed
        As in :func:`~nni_gconv.training.loop.fit`. The weights NNI gets are always those of the
        last step, whatever ``settings.keep`` says: masks and weights belong together.
    stage : str, default "sparsify"
        Name of the first training in the log; a second one is ``sparsify-2``.
    resume : bool, default False
        Go on from the last finished epoch in `directory`; weights, masks and what was
        given to :meth:`LoopEvaluator.track` come back. Trainings that NNI limits by
        ``max_steps`` are neither saved nor resumed.
    optimizer : Optimizer, optional
        One of your own for `model`, made with ``nni.trace(cls)(...)``; default: that of
        `settings`.
    teacher : nn.Module, optional
        As in :func:`~nni_gconv.training.loop.fit`: a network that NNI does not wrap.
    extra_metrics : callable, optional
        ``f(model) -> numbers`` for each epoch's record; default: ``sparsity`` of the masks.

    Returns
    -------
    LoopEvaluator
        A ``nni.compression.TorchEvaluator``. After ``pruner.compress(...)`` its ``result`` is
        the :class:`~nni_gconv.training.engine.FitResult` of the training.

    Examples
    --------
    >>> import tempfile
    >>> from nni.compression.pruning import SlimPruner
    >>> from nni_gconv.training.data import DataSettings, load_data, make_loaders
    >>> data = DataSettings(name="digits", batch_size=64)
    >>> loaders = make_loaders(load_data(data), data, seed=0, device="cpu")
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     evaluator = make_evaluator(
    ...         net, loaders, TrainSettings(), directory=Path(folder), device="cpu",
    ...         progress=False,
    ...     )
    ...     config = [{"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}]
    ...     _, masks = SlimPruner(net, config, evaluator, training_steps=20).compress()
    >>> masks["1"]["weight"].sum()
    tensor(4.)
    """
    options = {
        "directory": Path(directory),
        "device": torch.device(device),
        "seed": seed,
        "stage": stage,
        "log": log,
        "progress": progress,
        "resume": resume,
        "teacher": teacher,
        "extra_metrics": extra_metrics or (lambda m: {"sparsity": mask_sparsity(m)}),
        "after_step": after_step,
        "distributed": distributed or Distributed(),
    }
    last = settings.model_copy(update={"keep": "last"})
    return LoopEvaluator(model, loaders, last, optimizer, options)
