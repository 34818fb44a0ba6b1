"""Training a network: :func:`fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from nni_gconv.training.data import Loaders
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.engine import (
    FitResult,
    Loop,
    default_training_step,
)
from nni_gconv.training.logs import MetricLog
from nni_gconv.training.optim import Schedule, ScheduleLR, make_optimizer
from nni_gconv.training.settings import TrainSettings


def fit(
    model: nn.Module,
    loaders: Loaders,
    settings: TrainSettings,
    *,
    directory: Path,
    device: torch.device | str,
    seed: int = 0,
    stage: str = "train",
    log: MetricLog | None = None,
    progress: bool = True,
    resume: bool = False,
    teacher: nn.Module | None = None,
    extra_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
    after_step: Callable[[], None] | None = None,
    distributed: Distributed | None = None,
) -> FitResult:
    """Train `model` in place.

    Parameters
    ----------
    model : nn.Module
        Maps (B, C, H, W) to logits (B, classes); moved to `device`.
    loaders : Loaders
        Of :func:`~nni_gconv.training.data.make_loaders`.
    settings : TrainSettings
        Epochs, optimizer, schedule, ... ``keep`` says which weights the model ends with.
    directory : Path
        ``checkpoint.pt`` is written here after each epoch.
    device : torch.device or str
        Where to train.
    seed : int, default 0
        Of everything that is random in the model (dropout); Python's, NumPy's and torch's global
        generators are seeded anew in each epoch.
    stage : str, default "train"
        Name of this run in the log.
    log : MetricLog, optional
        Where each epoch's numbers go.
    progress : bool, default True
        Show a bar (terminal) or a line an epoch (else) on standard error.
    resume : bool, default False
        Go on from the last finished epoch in `directory`, if there is one; the weights end bit
        for bit as without the interruption. False begins anew.
    teacher : nn.Module, optional
        Network whose logits ``settings.distill`` asks for, as a rule the dense one; moved to
        `device`, in evaluation mode meanwhile, and not a part of checkpoints. A resumed run has to
        be given the same.
    extra_metrics : callable, optional
        ``f(model) -> {"sparsity": 0.3}``; added to each epoch's record.
    after_step : callable, optional
        Called after each step of the optimizer.
    distributed : Distributed, optional
        The processes that train together.

    Returns
    -------
    FitResult
        History, best and last accuracy, time.

    Raises
    ------
    CheckpointError
        The checkpoint is damaged, or was made under other settings or for another network.
    ConfigError
        ``amp: fp16`` without a GPU; `teacher` without ``settings.distill`` or the other way round;
        an extra metric that is no finite number.
    NniGconvError
        The loss is not finite.

    Examples
    --------
    >>> import tempfile
    >>> from nni_gconv.training.data import DataSettings, load_data, make_loaders
    >>> settings = DataSettings(name="digits", batch_size=64)
    >>> loaders = make_loaders(load_data(settings), settings, seed=0, device="cpu")
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = fit(net, loaders, TrainSettings(epochs=2), directory=Path(folder),
    ...                  device="cpu", progress=False)
    >>> len(result.history), result.best_accuracy > 0.8
    (2, True)
    """
    device = torch.device(device)
    model.to(device)
    optimizer = make_optimizer(model, settings)
    steps = len(loaders.train)
    schedule = Schedule.from_settings(settings, steps, settings.epochs * steps)
    loop = Loop(
        model=model,
        loaders=loaders,
        settings=settings,
        directory=Path(directory),
        device=device,
        optimizer=optimizer,
        scheduler=ScheduleLR(optimizer, schedule),
        training_step=default_training_step(settings, teacher),
        epochs=settings.epochs,
        seed=seed,
        stage=stage,
        log=log,
        progress=progress,
        resume=resume,
        teacher=teacher,
        extra_metrics=extra_metrics,
        after_step=after_step,
        distributed=distributed or Distributed(),
    )
    loop.run()
    return loop.result()
