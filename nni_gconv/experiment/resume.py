"""Which experiment is meant, whether it can go on, and what NNI has to be told for it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.errors import ConfigError, nearest
from nni_gconv.experiment.database import read_config, read_database, read_tried
from nni_gconv.experiment.manager import ENDED, FAILED
from nni_gconv.experiment.preflight import (
    ExperimentPlan,
    check_config,
    check_tools,
    choose_port,
)
from nni_gconv.experiment.running import end_processes

if TYPE_CHECKING:
    import psutil

__all__ = ["find_experiment", "prepare_resume", "resume_plan"]


def find_experiment(experiment: str | Path) -> Path:
    """Return the folder of an experiment.

    Parameters
    ----------
    experiment : str or Path
        Its folder, or its id: looked up in the list that ``nnictl`` keeps, and in
        ``~/nni-experiments``.

    Returns
    -------
    Path
        Absolute; it has a database.

    Raises
    ------
    ConfigError
        There is none; the nearest id is named.

    Examples
    --------
    >>> find_experiment("no-such-experiment")
    Traceback (most recent call last):
        ...
    nni_gconv.errors.ConfigError: no-such-experiment: neither an experiment's folder nor its id...
    """
    path = Path(experiment).expanduser()
    home = Path.home() / "nni-experiments"
    known = _registry(home)
    places = [path]
    if len(path.parts) == 1:
        places += [Path(known.get(str(experiment), home)) / path, home / path]
    for place in places:
        if (place / "db" / "nni.sqlite").is_file():
            return place.resolve()
    ids = {*known, *(file.parent.parent.name for file in home.glob("[!_]*/db/nni.sqlite"))}
    close = nearest(str(experiment), ids, count=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{experiment}: neither an experiment's folder nor its id{hint}")


def _registry(home: Path) -> dict[str, str]:
    try:
        entries = json.loads((home / ".experiment").read_text(encoding="utf-8"))
        return {key: str(entry.get("logDir") or home) for key, entry in entries.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def resume_plan(
    experiment: str | Path,
    *,
    port: int | None = None,
    concurrency: int | None = None,
    max_trials: int | None = None,
    retry_failed: bool = False,
    loopback: bool = True,
) -> ExperimentPlan:
    """Check that an experiment can go on, and end what a killed manager left running of it.

    Parameters
    ----------
    experiment : str or Path
        Id or folder.
    port, concurrency, max_trials, retry_failed, loopback
        As in :func:`nni_gconv.experiment.resume_experiment`.

    Returns
    -------
    ExperimentPlan
        To be handed to :func:`nni_gconv.experiment.start`.

    Raises
    ------
    ConfigError
        There is no such experiment, it is running, or what it names is gone.
    """
    from nni_gconv.compat import load_experiment_config

    folder = find_experiment(experiment)
    data = read_config(folder)
    check_tools()
    manager = _manager_of(folder.name)
    if manager is not None:
        raise ConfigError(
            f"experiment {folder.name} is still running (process {manager.pid}); "
            f"stop it first: nnictl stop {folder.name}"
        )
    # The folder may have been moved since; NNI goes by where it is now.
    data["experimentWorkingDirectory"] = str(folder.parent)
    for key, value in (("trialConcurrency", concurrency), ("maxTrialNumber", max_trials)):
        if value is not None:
            data[key] = value
    try:
        config = load_experiment_config(data, folder)
        check_config(config, loopback=loopback)
    except ConfigError as error:
        raise ConfigError(f"experiment {folder.name}: {error}") from None
    again = [
        key
        for key, trial in read_database(folder).trials.items()
        if trial.status == "KILLED" or (retry_failed and trial.status in FAILED)
    ]
    checked = choose_port(port)
    left = end_processes(folder)
    notes = (f"ended {left} processes that the earlier manager left running",) if left else ()
    return ExperimentPlan(
        folder / "db", config, checked, loopback, notes, resumes=folder.name, again=tuple(again)
    )


def _manager_of(experiment_id: str) -> psutil.Process | None:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            if experiment_id in words and any(word.endswith("main.js") for word in words):
                return process
    return None


def prepare_resume(plan: ExperimentPlan, private: Path) -> tuple[int, frozenset[str]]:
    """Write for our repair of NNI's manager what it has to know of the trials there are.

    Parameters
    ----------
    plan : ExperimentPlan
        Of :func:`resume_plan`.
    private : Path
        Folder of the launch files.

    Returns
    -------
    (int, frozenset of str)
        Length of ``dispatcher.log`` so far, and the ids of the trials that have ended.
    """
    from nni_gconv.compat import write_resume_file

    folder = plan.folder / str(plan.resumes)
    grid = (plan.config.tuner.name or "").lower() in ("gridsearch", "batchtuner")
    write_resume_file(
        private,
        again=plan.again,
        tried=json.dumps(read_tried(folder)) if grid else None,
        max_trials=plan.config.max_trial_number,
        concurrency=plan.config.trial_concurrency,
    )
    trials = read_database(folder).trials
    ended = {key for key, trial in trials.items() if trial.status in ENDED}
    log = folder / "log" / "dispatcher.log"
    return (log.stat().st_size if log.is_file() else 0), frozenset(ended - set(plan.again))
