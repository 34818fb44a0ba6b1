"""An experiment that may be started: what the checks hand on to the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_gconv.experiment.checks.machines import services_of
from nni_gconv.experiment.checks.search_space import grid_size, open_keys
from nni_gconv.remote import Machine, machines_of


@dataclass(frozen=True)
class Resumption:
    """What an experiment that goes on had come to.

    Attributes
    ----------
    id : str
        NNI's id.
    ended : frozenset of str
        Ids of the trials that have ended and stay as they are.
    log_start : int
        Length of ``dispatcher.log``: what stands there is of earlier starts.
    """

    id: str
    ended: frozenset[str] = frozenset()
    log_start: int = 0


@dataclass(frozen=True)
class ExperimentPlan:
    """An experiment that has passed every check and may be started.

    Attributes
    ----------
    file : Path
        The YAML it was read from.
    config : nni.experiment.ExperimentConfig
        Canonical: absolute paths, search space read in.
    port : int
        A free port for the web UI.
    loopback : bool
        Whether the manager listens on 127.0.0.1 only.
    notes : tuple of str
        What is allowed but may not be meant; to be shown before the start.
    resumes : Resumption or None
        The experiment that goes on; None for a new one.
    """

    file: Path
    config: Any
    port: int
    loopback: bool
    notes: tuple[str, ...] = ()
    resumes: Resumption | None = None

    @property
    def name(self) -> str:
        """The experiment's name, the file's folder where it has none."""
        return self.config.experiment_name or self.file.parent.name

    @property
    def folder(self) -> Path:
        """Folder that all experiments of this kind are kept in."""
        return Path(self.config.experiment_working_directory)

    @property
    def services(self) -> list[Any]:
        """The training services: one, or the several of a hybrid experiment."""
        return services_of(self.config)

    @property
    def machines(self) -> list[Machine]:
        """The machines that trials run on by SSH."""
        return machines_of(self.config.training_service)

    @property
    def max_trials(self) -> int | None:
        """How many trials there will be at most, where that is known."""
        limits = [self.config.max_trial_number]
        if self._grid:
            limits.append(grid_size(self.config.search_space))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def varied(self) -> set[str] | None:
        """Names of the parameters in which trials differ, where that is known."""
        known = self._grid or not self.config.tuner.class_name
        return open_keys(self.config.search_space) if known else None

    @property
    def _grid(self) -> bool:
        names = ("gridsearch", "gconvgridsearch", "nni_gconv.tuner.gridsearch")
        return (self.config.tuner.name or self.config.tuner.class_name or "").lower() in names

    @property
    def minimize(self) -> bool:
        """Whether the tuner looks for the smallest ``default`` metric."""
        return (self.config.tuner.class_args or {}).get("optimize_mode") == "minimize"
