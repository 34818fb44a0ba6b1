"""The one training loop: plain training, fine-tuning, and training inside NNI's pruners.

:func:`nni_gconv.training.loop.fit` runs it for a model of one's own;
:func:`nni_gconv.training.evaluator.make_evaluator` hands it to NNI, whose pruners patch the
training step and the optimizer it is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nni_gconv.errors import ConfigError, NniGconvError
from nni_gconv.training.checkpoint import (
    check_identity,
    load_checkpoint,
    load_model_state,
    save_checkpoint,
)
from nni_gconv.training.data import Loaders
from nni_gconv.training.distill import distillation_loss, teaching, weights_digest
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.features import FeatureTeacher, feature_loss, recorded
from nni_gconv.training.logs import EpochProgress, MetricLog, check_numbers, log_distributions
from nni_gconv.training.metrics import Metrics, autocast, check_amp, evaluate
from nni_gconv.training.optim import ScheduleLR
from nni_gconv.training.seeding import derive_seed, seed_everything
from nni_gconv.training.settings import TrainSettings

CHECKPOINT_NAME = "checkpoint.pt"
_CHECK_EVERY = 100  # steps between looks at the loss; a look waits for the GPU

Batch = tuple[Tensor, Tensor]
TrainingStep = Callable[..., Any]
#: ``task(epoch, epochs)``: number of the epoch, from 0, and how many there are.
EpochTask = Callable[[int, int], None]


class Stateful(Protocol):
    """Something whose state belongs into the checkpoint, for example a pruner's counters."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and words."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take back what :meth:`state_dict` gave."""


@dataclass(frozen=True)
class FitResult:
    """What a training run came to.

    Accuracies are fractions of 1 on the validation images. Without any epoch `best_epoch` is
    None and both accuracies are those of the model as it was given.
    """

    history: list[dict[str, float]]
    """One record an epoch: ``epoch``, ``loss``, ``val_loss``, ``val_accuracy``, ``val_top5``,
    ``lr``, ``seconds`` and extra metrics."""
    best_epoch: int | None
    """From 1; the later of equals."""
    best_accuracy: float
    last_accuracy: float
    seconds: float
    """Time of all epochs, those before a resume included."""


def default_training_step(
    settings: TrainSettings, teacher: nn.Module | None = None
) -> TrainingStep:
    """Return ``step(batch, model) -> loss``: cross-entropy of the logits, or with a teacher's.

    Raises
    ------
    ConfigError
        There is a teacher and no ``distill`` in the settings, or the other way round; so with
        ``distill.features`` and a :class:`FeatureTeacher`.
    """
    smoothing, distill = settings.label_smoothing, settings.distill
    if (teacher is None) != (distill is None):
        raise ConfigError(
            "distill: needs teacher=, the dense network"
            if teacher is None
            else "teacher: needs distill in the settings: {temperature: 4, weight: 0.7}"
        )

    by_maps = teacher if isinstance(teacher, FeatureTeacher) else None
    if bool(distill is not None and distill.features) != bool(by_maps):
        raise ConfigError(
            "teacher: a FeatureTeacher needs features in the settings: distill: {features: 100}"
            if by_maps
            else "distill.features: needs teacher=FeatureTeacher(dense, common_maps(...))"
        )

    def training_step(batch: Batch, model: nn.Module) -> Tensor:
        images, labels = batch
        if teacher is None or distill is None:
            return F.cross_entropy(model(images), labels, label_smoothing=smoothing)
        share = 0.0 if by_maps is None else by_maps.share
        common = by_maps.common if by_maps is not None and share else {}
        known = teacher if by_maps is None else by_maps.network
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        with recorded(known, common) as theirs, torch.no_grad():
            taught = teacher(images)
        with recorded(inner, common) as ours:
            logits = model(images)
        loss = distillation_loss(logits, taught, labels, distill, smoothing)
        if not common:
            return loss
        return loss + distill.features * share * feature_loss(ours, theirs, common)

    return training_step


@dataclass
class Loop:
    """Everything one run of training needs, and the state it is in.

    The optimizer, its scheduler and the training step come from outside, because NNI patches
    them; the rest of what happens in an epoch happens here and nowhere else.
    """

    model: nn.Module
    loaders: Loaders
    settings: TrainSettings
    directory: Path
    device: torch.device
    optimizer: Optimizer
    scheduler: ScheduleLR
    training_step: TrainingStep
    epochs: int
    max_steps: int | None = None
    """Stop after so many steps, in the middle of an epoch if need be; at most `epochs` long."""
    seed: int = 0
    stage: str = "train"
    log: MetricLog | None = None
    progress: bool = True
    resume: bool = False
    checkpoints: bool = True
    """Write one after each epoch, and look for one at the start."""
    teacher: nn.Module | None = None
    """Whose logits the training step asks for; kept in evaluation mode, not in checkpoints."""
    extra_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None
    after_step: Callable[[], None] | None = None
    distributed: Distributed = field(default_factory=Distributed)
    stateful: Sequence[Stateful] = ()
    epoch_tasks: Sequence[tuple[EpochTask, EpochTask]] = ()
    """What to do before the steps of each epoch, and after them."""

    def __post_init__(self) -> None:
        check_amp(self.settings.amp, self.device)
        self.path = self.directory / CHECKPOINT_NAME
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.amp == "fp16")
        self.history: list[dict[str, float]] = []
        self.best_state: dict[str, Tensor] | None = None

    def run(self) -> None:
        """Train from the last finished epoch to the end."""
        channels_last = self.settings.channels_last
        with teaching(self.teacher, self.model, self.device, channels_last=channels_last):
            self._run()

    def _run(self) -> None:
        self._prepare()
        trained = self.distributed.wrap(self.model)
        with EpochProgress(self.stage, self.epochs, self._shows_progress) as bar:
            for epoch in range(len(self.history), self.epochs):
                started = time.perf_counter()
                steps = self._steps_of(epoch)
                bar.begin(epoch + 1, steps)
                for before, _ in self.epoch_tasks:
                    before(epoch, self.epochs)
                loss = self._train_epoch(trained, epoch, steps, bar)
                if steps < len(self.loaders.train):
                    break  # cut short by max_steps: no epoch to evaluate, log or resume
                record = self._finish_epoch(epoch, loss, started)
                bar.end(epoch + 1, record)
        self.optimizer.zero_grad(set_to_none=True)
        if self.best_state is not None:
            load_model_state(self.model, self.best_state, self.path)
        if self.settings.channels_last:  # what comes next begins as it does after a resume
            self.model.to(memory_format=torch.contiguous_format)

    # --- before ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.model.to(self.device)
        if self.settings.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.directory.mkdir(parents=True, exist_ok=True)
        payload = None
        if self.distributed.is_main and self.checkpoints:
            if self.resume and self.path.exists():
                payload = load_checkpoint(self.path)
            else:
                self.path.unlink(missing_ok=True)
        payload = self.distributed.broadcast_object(payload)
        if payload is not None:
            self._restore(payload)
        elif self.log is not None and self.distributed.is_main:
            self.log.forget(self.stage)
        self.distributed.sync_buffers(self.model)
        for record in self.history:  # lines that a kill between log and disk may have lost
            self._write_log(record)

    def _restore(self, payload: dict[str, Any]) -> None:
        check_identity(self.path, payload["identity"], self._identity())
        load_model_state(self.model, payload["model"], self.path)
        self.optimizer.load_state_dict(payload["optimizer"])
        self.scaler.load_state_dict(payload["scaler"])
        for thing, state in zip(self.stateful, payload["stateful"], strict=True):
            thing.load_state_dict(state)
        self.history, self.best_state = payload["history"], payload["best_state"]

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for a resumed run to end as an uninterrupted one."""
        taught = {} if self.teacher is None else {"teacher": weights_digest(self.teacher)}
        settings = self.settings.model_dump(mode="json")
        if settings["distill"] and not settings["distill"]["features"]:
            for key in ("features", "features_epochs"):  # unknown to checkpoints of before
                del settings["distill"][key]
        return {
            **taught,
            "settings": settings,
            "optimizer": type(self.optimizer).__name__,
            "epochs": self.epochs,
            "seed": self.seed,
            "steps_per_epoch": len(self.loaders.train),
            "input_shape": list(self.loaders.input_shape),
            "processes": self.distributed.world_size,
            "stateful": len(self.stateful),
        }

    @property
    def _shows_progress(self) -> bool:
        return self.progress and self.distributed.is_main

    # --- an epoch --------------------------------------------------------------------------------

    def _steps_of(self, epoch: int) -> int:
        steps = len(self.loaders.train)
        return steps if self.max_steps is None else min(steps, self.max_steps - epoch * steps)

    def _train_epoch(self, trained: nn.Module, epoch: int, steps: int, bar: EpochProgress) -> float:
        """Take `steps` steps and return the mean of their losses over all processes."""
        seed_everything(derive_seed("epoch", self.seed, epoch, self.distributed.rank))
        self.loaders.train.set_epoch(epoch)
        self.model.train()
        trained.train()
        first = epoch * len(self.loaders.train)
        losses: list[Tensor] = []
        for step, batch in zip(range(first, first + steps), self.loaders.train, strict=False):
            losses.append(self._step(trained, batch, step))
            bar.step()
            if len(losses) % _CHECK_EVERY == 0:
                self._check_finite(torch.stack(losses[-_CHECK_EVERY:]), epoch, step + 1)
        # Summed over the processes, so that all of them see a loss that is not finite.
        means = self.distributed.sum(torch.stack(losses)) / self.distributed.world_size
        self._check_finite(means, epoch, first + steps)
        return float(means.double().mean())

    def _step(self, trained: nn.Module, batch: Batch, step: int) -> Tensor:
        settings = self.settings
        self.scheduler.seek(step)
        if isinstance(self.teacher, FeatureTeacher) and settings.distill is not None:
            epochs = step / len(self.loaders.train)
            self.teacher.fade(epochs, settings.distill.features_epochs)
        self.optimizer.zero_grad(set_to_none=True)
        images, labels = batch
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(settings.amp, self.device):
            loss = _loss_of(self.training_step((images, labels), trained))
        self.scaler.scale(loss).backward()
        if settings.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.after_step is not None:
            self.after_step()
        return loss.detach()

    def _check_finite(self, losses: Tensor, epoch: int, end: int) -> None:
        """Stop if one of `losses`, those of the steps before `end`, is not finite."""
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step = end - len(losses) + int(bad[0])
            self.scheduler.seek(step)
            rate = self.scheduler.get_last_lr()[0]
            raise NniGconvError(
                f"{self.stage}: the loss is {float(losses[bad[0]]):.4g} in epoch {epoch + 1}, "
                f"step {step - epoch * len(self.loaders.train) + 1}, at lr {rate:.3g}; "
                "lower optimizer.lr, add schedule.warmup or set grad_clip"
            )

    def _finish_epoch(self, epoch: int, loss: float, started: float) -> dict[str, float]:
        """Evaluate, remember the best, log and write the checkpoint."""
        for _, after in self.epoch_tasks:
            after(epoch, self.epochs)
        self.distributed.sync_buffers(self.model)
        val = self.evaluate()
        record = {
            "epoch": epoch + 1,
            "loss": loss,
            "val_loss": val.loss,
            "val_accuracy": val.accuracy,
            "val_top5": val.top5,
            "lr": float(self.scheduler.get_last_lr()[0]),
        }
        if self.extra_metrics is not None:
            record |= check_numbers(self.extra_metrics(self.model))
        for thing in self.stateful:
            record |= check_numbers(getattr(thing, "epoch_metrics", dict)())
        record["seconds"] = time.perf_counter() - started
        self.history.append(record)
        if self.settings.keep == "best" and self._best()["epoch"] == epoch + 1:
            self.best_state = _cpu_copy(self.model)
        # The checkpoint first: telling NNI fails when its manager is gone, and the epoch stays.
        if self.checkpoints and self.distributed.is_main:
            self._save()
        if self.log is not None and self.distributed.is_main:
            log_distributions(self.log, self.model, self.stage, epoch + 1, self.epochs)
        self._write_log(record)
        return record

    # --- after -----------------------------------------------------------------------------------

    def _save(self) -> None:
        save_checkpoint(
            self.path,
            {
                "identity": self._identity(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "stateful": [thing.state_dict() for thing in self.stateful],
                "history": self.history,
                "best_state": self.best_state,
            },
        )

    def _write_log(self, record: Mapping[str, float]) -> None:
        if self.log is not None and self.distributed.is_main:
            metrics = {name: value for name, value in record.items() if name != "epoch"}
            self.log.write(self.stage, int(record["epoch"]), metrics)

    def _best(self) -> dict[str, float]:
        return max(self.history, key=lambda r: (r["val_accuracy"], r["epoch"]))

    def evaluate(self) -> Metrics:
        """Measure the model on the validation images."""
        return evaluate(
            self.model,
            self.loaders.val,
            device=self.device,
            amp=self.settings.amp,
            channels_last=self.settings.channels_last,
            distributed=self.distributed,
        )

    def result(self) -> FitResult:
        """Return what the run came to; without an epoch the model is evaluated now."""
        if not self.history:
            val = self.evaluate()
            return FitResult([], None, val.accuracy, val.accuracy, 0.0)
        best = self._best()
        return FitResult(
            self.history,
            int(best["epoch"]),
            best["val_accuracy"],
            self.history[-1]["val_accuracy"],
            math.fsum(record["seconds"] for record in self.history),
        )


def _loss_of(output: Any) -> Tensor:
    """Return the loss of a training step: the tensor, the first of a tuple, or the key loss."""
    if isinstance(output, Tensor):
        return output
    loss: Tensor = output["loss"] if isinstance(output, Mapping) else output[0]
    return loss


def _cpu_copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}
