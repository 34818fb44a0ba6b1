"""Going on with an experiment: which one, whether it can, and what NNI has to be told."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.compat import WATCHED_BY, read_config, read_database, read_tried
from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks import ExperimentPlan, Resumption, preflight
from nni_gconv.experiment.launch import run_experiment
from nni_gconv.experiment.locate import find_experiment
from nni_gconv.experiment.manager import ENDED, FAILED, ManagerClient, ManagerError
from nni_gconv.experiment.running import end_processes
from nni_gconv.files import write_text
from nni_gconv.yaml12 import write_yaml

if TYPE_CHECKING:
    import psutil

    from nni_gconv.experiment.progress import ExperimentView
    from nni_gconv.experiment.watch import Outcome

#: For a manager to stop its trials.
_STOP_SECONDS = 60.0


def resume_experiment(
    experiment: str | Path,
    *,
    port: int | None = None,
    concurrency: int | None = None,
    max_trials: int | None = None,
    retry_failed: bool = False,
    loopback: bool = True,
    keep_ui: bool = False,
    max_failed: int = 5,
    view: ExperimentView | None = None,
) -> Outcome:
    """Go on with an experiment that was stopped, killed or cut off, and watch it to its end.

    Trials that have ended are kept and count; those that had not keep their ids and folders and go
    on from their last epoch; the tuner learns the results there are.

    Parameters
    ----------
    experiment : str or Path
        Its id, or its folder.
    port, concurrency, loopback
        As in :func:`nni_gconv.experiment.run_experiment`.
    max_trials : int, optional
        Instead of the ``maxTrialNumber`` it was started with; trials that have ended count.
    retry_failed : bool, default False
        Let failed trials go on too, from where they failed. Those that a signal ended (no memory,
        a reboot) always do.
    keep_ui, max_failed, view
        As in :func:`nni_gconv.experiment.run_experiment`.

    Returns
    -------
    Outcome
        How it ended, with all its trials.

    Raises
    ------
    ConfigError
        There is no such experiment, it is running, or what it names is gone.
    ManagerError
        NNI's manager did not come up.

    Examples
    --------
    >>> from nni_gconv.experiment import resume_experiment
    >>> resume_experiment("pyxj3k9w").ok  # doctest: +SKIP
    True
    """
    plan = resume_plan(
        experiment,
        port=port,
        concurrency=concurrency,
        max_trials=max_trials,
        retry_failed=retry_failed,
        loopback=loopback,
    )
    return run_experiment(plan, keep_ui=keep_ui, max_failed=max_failed, view=view)


def resume_plan(
    experiment: str | Path,
    *,
    port: int | None = None,
    concurrency: int | None = None,
    max_trials: int | None = None,
    retry_failed: bool = False,
    loopback: bool = True,
) -> ExperimentPlan:
    """Check that an experiment can go on, and end what still runs of it and is not watched.

    Parameters
    ----------
    experiment : str or Path
        Id or folder.
    port, concurrency, max_trials, retry_failed, loopback
        As in :func:`resume_experiment`.

    Returns
    -------
    ExperimentPlan
        To be handed to :func:`nni_gconv.experiment.run_experiment`.

    Raises
    ------
    ConfigError
        There is no such experiment, it is running, or what it names is gone.
    """
    from nni_gconv.compat import write_resume_file

    folder = find_experiment(experiment)
    _check_owner(folder)
    data = read_config(folder)
    manager = _manager_of(folder.name)
    if manager is not None and not _left_alone(manager):
        raise ConfigError(
            f"experiment {folder.name} is still running (process {manager.pid}); "
            f"stop it first, what its trials have done is kept: nnictl stop {folder.name}"
        )
    # The folder may have been moved since; NNI goes by where it is now.
    data["experimentWorkingDirectory"] = str(folder.parent)
    if max_trials is not None:
        data["maxTrialNumber"] = max_trials
    file = folder / "resumed.yml"
    write_text(file, write_yaml(data))
    checked = partial(preflight, file, concurrency=concurrency, loopback=loopback)
    if manager is not None:  # the command that watched it was killed
        checked()  # a file that cannot go on stops nothing; the manager may hold the port
        _stop(manager)
    plan = checked(port=port)

    left = end_processes(folder)
    trials = read_database(folder).trials
    again = {
        key
        for key, trial in trials.items()
        if trial.status == "KILLED" or (retry_failed and trial.status in FAILED)
    }
    grid = (plan.config.tuner.name or "").lower() in ("gridsearch", "batch", "batchtuner")
    write_resume_file(
        folder / "launch",
        again=sorted(again),
        tried=json.dumps(read_tried(folder)) if grid else None,
        max_trials=plan.config.max_trial_number,
        concurrency=plan.config.trial_concurrency,
    )
    log = folder / "log" / "dispatcher.log"
    ended = frozenset(key for key, trial in trials.items() if trial.status in ENDED) - again
    start = log.stat().st_size if log.is_file() else 0
    notes = (f"ended {left} processes that the earlier manager left running",) if left else ()
    return replace(plan, notes=(*notes, *plan.notes), resumes=Resumption(folder.name, ended, start))


def _check_owner(folder: Path) -> None:
    """Refuse an experiment of another user: going on with it runs the commands that it holds."""
    file = folder / "db" / "nni.sqlite"
    if hasattr(os, "getuid") and file.is_file() and file.stat().st_uid not in (os.getuid(), 0):
        raise ConfigError(
            f"{file} belongs to another user (number {file.stat().st_uid}); going on with an "
            "experiment runs the commands that it holds"
        )


def _manager_of(experiment_id: str) -> psutil.Process | None:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            if experiment_id in words and any(word.endswith("main.js") for word in words):
                return process
    return None


def _left_alone(manager: psutil.Process) -> bool:
    """Tell whether a manager that we started runs on without the process that watched it."""
    import psutil

    try:
        pid, _, begun = manager.environ().get(WATCHED_BY, "").partition(" ")
    except psutil.AccessDenied:
        return False
    if not pid:  # nnictl's, which nobody watches
        return False
    try:
        watching = psutil.Process(int(pid))
        same = abs(watching.create_time() - float(begun)) < 1
        return not same or watching.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _stop(manager: psutil.Process) -> None:
    """Let a manager stop its trials and itself; what will not go is ended with what is left."""
    import psutil

    words = manager.cmdline()
    with contextlib.suppress(ManagerError, psutil.TimeoutExpired):
        ManagerClient(int(words[words.index("--port") + 1])).stop()
        manager.wait(_STOP_SECONDS)
