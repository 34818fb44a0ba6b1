"""Reading what NNI's manager wrote down about the trials of an experiment.

Only reading, so that it works beside a running manager as well as long after it. (What a manager
that was killed left half written is undone first.)
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_gconv.compat.nni_trial import flat_parameters, manager_database, trial_folder
from nni_gconv.errors import ConfigError

_END_EVENTS = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")


def parse_metrics(data: Any) -> dict[str, float]:
    """Read a metric as NNI keeps it: JSON inside JSON, a number or a mapping of numbers."""
    for _ in range(2):
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except ValueError:
                return {}
    if isinstance(data, int | float) and not isinstance(data, bool):
        return {"default": float(data)}
    if not isinstance(data, dict):
        return {}
    return {k: float(v) for k, v in data.items() if isinstance(v, int | float)}


def parse_parameters(text: Any) -> dict[str, Any]:
    """Read the parameters out of NNI's record of a trial, flat; what is no JSON counts as none."""
    try:
        record = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    parameters = record.get("parameters") if isinstance(record, dict) else None
    return flat_parameters(parameters) if isinstance(parameters, dict) else {}


@dataclass
class TrialRecord:
    """What NNI wrote down about a trial.

    Attributes
    ----------
    status : str
        NNI's last status, or ``KILLED``: NNI also calls a trial USER_CANCELED that a signal ended
        (out of memory, say) and nobody cancelled.
    number : int
        Order of submission, -1 where unknown.
    parameters : dict
        Those that the trial was given.
    metrics : dict
        Flat numbers of the final result.
    start, end : int or None
        Milliseconds since 1970.
    """

    status: str = "UNKNOWN"
    number: int = -1
    parameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    start: int | None = None
    end: int | None = None
    cancelled: bool = False


@dataclass
class ExperimentRecord:
    """Everything of an experiment's database that is used here.

    Attributes
    ----------
    trials : dict of str to TrialRecord
        By trial id.
    ended : bool
        Whether the experiment is over; false also if its manager was killed.
    """

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    ended: bool = False


def read_database(folder: Path) -> ExperimentRecord:
    """Read the database of an experiment.

    Parameters
    ----------
    folder : Path
        The experiment's folder.

    Returns
    -------
    ExperimentRecord
        Empty where there is no database, or nothing in it yet.

    Raises
    ------
    ConfigError
        The database is damaged or cannot be read.
    """
    file = folder / "db" / "nni.sqlite"
    record = ExperimentRecord()
    if not file.is_file():
        return record
    try:
        with _opened(file) as connection:
            events = connection.execute(
                "select trialJobId, event, timestamp, data, sequenceId from TrialJobEvent"
                " order by rowid"
            ).fetchall()
            metrics = connection.execute(
                "select trialJobId, parameterId, type, data from MetricData order by rowid"
            ).fetchall()
            profile = connection.execute(
                "select endTime from ExperimentProfile order by revision desc limit 1"
            ).fetchone()
    except sqlite3.Error as error:
        if "no such table" in str(error):  # the manager has only just begun it
            return record
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    chosen: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, event, stamp, data, number in events:
        if key:
            _replay(record.trials.setdefault(key, TrialRecord()), event, stamp, data, number)
            chosen.update(_by_parameter_id(data))
            own.setdefault(key, {}).update(_by_parameter_id(data))
    for key, parameter_id, kind, data in metrics:
        trial = record.trials.get(key)
        if trial is None:
            continue
        # Trials that start together may be given each other's parameters (NNI hands them out in
        # the order of asking); what came back with the metric is what the trial really had. Its
        # own id comes first: `nnictl resume` may give one id to two sets of parameters.
        if str(parameter_id) not in own.get(key, {}):
            trial.parameters = chosen.get(str(parameter_id), trial.parameters)
        if kind == "FINAL":
            trial.metrics = parse_metrics(data)
    for trial in record.trials.values():
        if trial.status == "USER_CANCELED" and not trial.cancelled:
            trial.status = "KILLED"
    record.ended = bool(profile and profile[0])
    return record


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration that an experiment was started with.

    Parameters
    ----------
    folder : Path
        The experiment's folder.

    Returns
    -------
    dict
        As NNI wrote it down: camel case, absolute paths.

    Raises
    ------
    ConfigError
        There is no database, it cannot be read, or the experiment never started.
    """
    file = folder / "db" / "nni.sqlite"
    query = "select params from ExperimentProfile order by revision desc limit 1"
    rows = _rows(file, query)
    if not rows:
        raise ConfigError(f"{file}: the experiment never started, there is nothing to resume")
    try:
        config = json.loads(rows[0][0])
    except (TypeError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: the experiment's configuration is damaged")
    return config


def trials_at_a_time() -> int:
    """Return how many trials share this machine, as far as that is known; 1 where it is not.

    It is where NNI's manager runs here, and all trials do: its database has `trialConcurrency`.
    """
    folder = trial_folder()
    if folder is None or not (database := manager_database(folder)).is_file():
        return 1
    with contextlib.suppress(ConfigError):
        config = read_config(database.parents[1])
        service, count = config.get("trainingService"), config.get("trialConcurrency")
        if isinstance(service, dict) and service.get("platform") == "local":
            return max(1, count) if isinstance(count, int) else 1
    return 1


def read_tried(folder: Path) -> list[dict[str, Any]]:
    """Read the parameters of all trials, whatever became of them, as entries for NNI's import.

    Returns
    -------
    list of dict
        ``{"parameter": {...}, "value": 1}``, and what a user imported.

    Raises
    ------
    ConfigError
        The database cannot be read.
    """
    query = "select trialJobId, event, data from TrialJobEvent where data <> '' order by rowid"
    chosen: dict[str, dict[str, Any]] = {}
    imported: list[dict[str, Any]] = []
    for key, event, data in _rows(folder / "db" / "nni.sqlite", query):
        try:
            entry = json.loads(data)
        except ValueError:
            continue
        if event == "IMPORT_DATA" and isinstance(entry, list):
            imported += entry
        elif key and isinstance(entry, dict) and "parameters" in entry:
            chosen.setdefault(key, {"parameter": entry["parameters"], "value": 1})
    return [*imported, *chosen.values()]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading.

    A manager that was killed while it wrote leaves half a change and a journal to undo it, which
    SQLite does at the next opening, but not at one that may only read.
    """
    for mode in ("ro", "rw"):
        uri = f"{file.absolute().as_uri()}?mode={mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
            try:
                connection.execute("select count(*) from sqlite_master").fetchone()
            except sqlite3.OperationalError:
                if mode == "rw":
                    raise
                continue
            yield connection
            return


def _rows(file: Path, query: str) -> list[Any]:
    try:
        with _opened(file) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None


def _replay(
    trial: TrialRecord, event: str, stamp: int | None, data: Any, number: int | None
) -> None:
    if event == "ADD_HYPERPARAMETER":
        return
    if event == "USER_TO_CANCEL":
        trial.cancelled = True
        event = "USER_CANCELED"
    if event == "ADD_RESUMED":
        event, trial.cancelled, trial.end = "WAITING", False, None
    trial.status = event
    trial.parameters = trial.parameters or parse_parameters(data)
    if number is not None and trial.number < 0:
        trial.number = number
    if event in ("WAITING", "RUNNING"):
        trial.start = stamp
    elif event in _END_EVENTS:
        trial.end = stamp


def _by_parameter_id(data: Any) -> dict[str, dict[str, Any]]:
    try:
        entry = json.loads(data) if data else {}
    except ValueError:
        return {}
    if not isinstance(entry, dict) or "parameter_id" not in entry:
        return {}
    return {str(entry["parameter_id"]): parse_parameters(entry)}
