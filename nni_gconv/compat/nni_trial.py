"""NNI's trial API: parameters in, metrics out, and where a trial may write."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError
from nni_gconv.files import write_json


def running_under_nni() -> bool:
    """Tell whether NNI's manager started this process.

    NNI's own tests set ``NNI_PLATFORM=unittest``, which does not count.
    """
    return os.environ.get("NNI_PLATFORM", "unittest") != "unittest"


def trial_folder() -> Path | None:
    """Return the folder that NNI gives the running trial for its files; None outside NNI."""
    given = os.environ.get("NNI_OUTPUT_DIR")
    return Path(given) if given and running_under_nni() else None


def experiment_folder() -> Path | None:
    """Return the folder all trials of an experiment share on this machine; None outside NNI.

    NNI gives a trial ``<experiment>/environments/<environment>/trials/<trial>``.
    """
    trial = trial_folder()
    return trial.parents[1] if trial is not None else None


def next_parameters() -> dict[str, Any]:
    """Return what the tuner chose for this trial, flat; empty when not under NNI.

    NNI wants to be asked exactly once in a trial, and asked before any metric is reported. This
    may be called again: it then returns what the first call got.

    Raises
    ------
    ConfigError
        The tuner sent no parameters, or such as name code.
    """
    if not running_under_nni():
        return {}
    import nni

    parameters: Any = nni.get_current_parameter()
    if parameters is None:
        with _plain_data():
            parameters = nni.get_next_parameter()
    if not isinstance(parameters, dict):
        raise ConfigError(f"the tuner sent {parameters!r} as parameters, expected a mapping")
    return flat_parameters(parameters)


@contextlib.contextmanager
def _plain_data() -> Iterator[None]:
    """Keep NNI from importing or unpickling what parameters name: they come over the network."""
    from nni.common import serializer

    def refuse(_value: object) -> Any:
        raise ConfigError("the tuner's parameters name code: parameters are numbers and words")

    names = ("import_cls_or_func_from_hybrid_name", "_wrapped_cloudpickle_loads")
    before = {name: getattr(serializer, name) for name in names}
    for name in names:
        setattr(serializer, name, refuse)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(serializer, name, function)


def flat_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Take nested choices apart: the name is the value of the choice, the rest stands beside it.

    Examples
    --------
    >>> flat_parameters({"prune.method": {"_name": "slimming", "sparsify.epochs": 8}, "seed": 1})
    {'prune.method': 'slimming', 'sparsify.epochs': 8, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) and "_name" in value:
            flat[key] = value["_name"]
            flat |= flat_parameters({k: v for k, v in value.items() if k != "_name"})
        else:
            flat[key] = value
    return flat


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Numbers of six digits, so that the columns of NNI's pages hold them.

    Examples
    --------
    >>> rounded({"default": 0.93123456789, "macs": 20412345})
    {'default': 0.931235, 'macs': 20412345}
    """
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}


def report_intermediate(metrics: dict[str, float]) -> None:
    """Send flat numbers with a key ``default`` as NNI's intermediate result; else do nothing."""
    if running_under_nni():
        import nni

        next_parameters()  # NNI asserts that a trial asked for its parameters first
        nni.report_intermediate_result(rounded(metrics))
        folder = trial_folder()
        if folder is not None and not manager_database(folder).is_file():
            told = {"trial": os.environ.get("NNI_TRIAL_JOB_ID"), "told": _sequence()}
            write_json(folder / _TOLD, told)


def continue_intermediates() -> int:
    """Count on where an earlier process of this very trial stopped.

    NNI gives a trial that is resumed its old id, and would begin again at the first intermediate
    result: a curve with every early epoch twice.

    Returns
    -------
    int
        How many intermediate results NNI has of this trial; 0 when not under NNI. What the manager
        wrote down is believed where it is on this machine, else what the trial did.
    """
    folder = trial_folder()
    if folder is None:
        return 0
    import nni.trial

    told = max(_told(folder), _sequence())
    nni.trial.overwrite_intermediate_seq(told)
    return told


_TOLD = "nni_told.json"


def _sequence() -> int:
    import nni.trial

    return int(nni.trial._intermediate_seq)


def manager_database(folder: Path) -> Path:
    """Return where the manager's database is if it runs on this machine."""
    above = folder.absolute().parents
    return above[min(3, len(above) - 1)] / "db" / "nni.sqlite"


def _told(folder: Path) -> int:
    trial = os.environ.get("NNI_TRIAL_JOB_ID")
    file = manager_database(folder)
    if file.is_file():
        with contextlib.suppress(sqlite3.Error):
            uri = f"{file.as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection:
                found = connection.execute(
                    "select count(distinct sequence) from MetricData"
                    " where trialJobId = ? and type = 'PERIODICAL'",
                    (trial,),
                ).fetchone()
            return int(found[0])
    try:
        note = json.loads((folder / _TOLD).read_text(encoding="utf-8"))
        return int(note["told"]) if note["trial"] == trial else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def end_leftovers(seconds: float = 10.0) -> int:
    """End what an earlier manager left running of this very trial.

    A manager that is killed leaves its trials behind; when it is resumed it starts them again, in
    the same folder. The older process would hold the folder, and report to the new manager.

    Parameters
    ----------
    seconds : float, default 10.0
        Time between SIGTERM and SIGKILL.

    Returns
    -------
    int
        How many processes were ended; 0 when not under NNI.
    """
    trial, experiment = (os.environ.get(key) for key in ("NNI_TRIAL_JOB_ID", "NNI_EXP_ID"))
    if not running_under_nni() or not trial or not experiment:
        return 0
    import psutil

    def ours(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            there = process.environ()
            return (there.get("NNI_TRIAL_JOB_ID"), there.get("NNI_EXP_ID")) == (trial, experiment)
        return False

    # The shell that NNI started, and all below it, are this run of the trial.
    top = psutil.Process()
    for parent in top.parents():
        if not ours(parent):
            break
        top = parent
    living = {top.pid, *(process.pid for process in top.children(recursive=True))}
    old = [one for one in psutil.process_iter() if one.pid not in living and ours(one)]
    for process in old:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(old, timeout=seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=seconds)
    return len(old)


def report_final(metrics: dict[str, float]) -> None:
    """Send flat numbers with a key ``default`` as NNI's final result; else do nothing."""
    if running_under_nni():
        import nni

        next_parameters()
        nni.report_final_result(rounded(metrics))
