"""Reading the trials of an experiment, or of run folders, finished or not.

A trial's own ``result.json`` is believed first; what it lacks (status, parameters, times, and
everything of a trial that broke) comes from NNI's database, and where that is missing too, from
the folders on disk. Nothing is executed or unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nni_gconv.compat import TrialRecord, read_database
from nni_gconv.experiment import held, last_lines, progress_of
from nni_gconv.report.sources import is_experiment, is_run, locate, trial_folders


@dataclass(frozen=True)
class TrialRow:
    """One trial, as a row of a table; what is not known is None.

    Attributes
    ----------
    trial : str
        NNI's trial id, or the run folder's name.
    status : str
        ``succeeded``, ``failed``, ``killed`` (by a signal, as when memory runs out),
        ``running``, ``waiting``, ``cancelled``, ``early stopped``, ``stopped`` (it was running
        when its experiment ended, or nobody runs it any more) or ``unreadable`` (its
        ``result.json`` is damaged).
    name, method : str or None
        The recipe's name; the pruning method.
    budget : dict or None
        For example ``{"macs": 0.5}``.
    accuracy, accuracy_dense : float or None
        Fractions of 1, on the validation split, of the small and of the dense network.
    accuracy_masked, accuracy_small : float or None
        The same with masks, and after speedup before any fine-tuning.
    top5, top5_dense, top5_masked, top5_small : float or None
        Whether the right class is among the first five, for each of these.
    params, macs : float or None
        Counts of the small network.
    params_ratio, macs_ratio, latency_ratio : float or None
        Small over dense: 0.5 is half.
    latency_ratio_low, latency_ratio_high : float or None
        Ends of the 95 % interval of the ratio.
    latency_ms : float or None
        Milliseconds of the small network.
    seconds : float or None
        From the trial's start to its end; of its stages for a run without NNI.
    test_accuracy, test_accuracy_dense, test_accuracy_masked, test_accuracy_small : float or None
        Fractions of 1, on the test split.
    parameters : dict
        What the tuner chose.
    folder : str or None
        Where the trial wrote.
    error : str or None
        Last line of a failed trial's log, or why its result cannot be read.
    metric : float or None
        What NNI calls the default metric, of a trial that is none of ours.
    validation_seen : bool
        Whether given weights have probably been trained on the validation images.
    progress : str or None
        How far a trial without a result has come: stage, epoch and validation accuracy.
    """

    trial: str
    status: str
    name: str | None = None
    method: str | None = None
    budget: dict[str, Any] | None = None
    accuracy: float | None = None
    accuracy_dense: float | None = None
    accuracy_masked: float | None = None
    accuracy_small: float | None = None
    top5: float | None = None
    top5_dense: float | None = None
    top5_masked: float | None = None
    top5_small: float | None = None
    params: float | None = None
    params_ratio: float | None = None
    macs: float | None = None
    macs_ratio: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None
    seconds: float | None = None
    test_accuracy: float | None = None
    test_accuracy_dense: float | None = None
    test_accuracy_masked: float | None = None
    test_accuracy_small: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    error: str | None = None
    metric: float | None = None
    progress: str | None = None
    validation_seen: bool = False

    @property
    def delta(self) -> float | None:
        """Accuracy less that of the dense network: a fraction of 1, negative where it fell."""
        if self.accuracy is None or self.accuracy_dense is None:
            return None
        return self.accuracy - self.accuracy_dense

    def interval(self, cost: str) -> tuple[float, float]:
        """Return the ends between which a cost lies; of what is counted both are the count."""
        value = getattr(self, cost)
        ends = getattr(self, f"{cost}_low", None), getattr(self, f"{cost}_high", None)
        return (
            value if ends[0] is None else min(ends[0], value),
            value if ends[1] is None else max(ends[1], value),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the delta, ready for JSON."""
        return {**asdict(self), "delta": self.delta}


class _Stage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    seconds: float = 0.0


class _Result(BaseModel):
    """What is read of a trial's ``result.json``, format 1; other keys are left alone."""

    model_config = ConfigDict(extra="ignore")
    format: int = Field(ge=1, le=1)
    name: str | None = None
    method: str | None = None
    budget: dict[str, Any] | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    test: dict[str, float | None] | None = None
    validation_seen: bool = False
    stages: dict[str, _Stage] = Field(default_factory=dict)


def collect(sources: str | Path | Iterable[str | Path]) -> list[TrialRow]:
    """Read trials into rows.

    Parameters
    ----------
    sources : str, Path, or several of them
        Each is the folder of an experiment, an experiment's id (looked up as ``nnictl`` does,
        under ``~/nni-experiments``), the folder of a run, finished or not, or a folder of run
        folders.

    Returns
    -------
    list of TrialRow
        In the order of submission, source by source. Running and broken experiments are fine.

    Raises
    ------
    ConfigError
        A source is none of these.

    Examples
    --------
    >>> rows = collect("~/nni-experiments/_latest")  # doctest: +SKIP
    >>> rows[0].accuracy, rows[0].macs_ratio  # doctest: +SKIP
    (0.967, 0.499)
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    rows: list[TrialRow] = []
    for source in sources:
        folder = locate(source)
        if is_experiment(folder):
            rows += _experiment_rows(folder)
        elif is_run(folder):
            rows.append(_run_row(folder))
        else:
            rows += [_run_row(inner) for inner in sorted(folder.glob("*/")) if is_run(inner)]
    return rows


def _experiment_rows(folder: Path) -> list[TrialRow]:
    record = read_database(folder)
    known = record.trials
    found = trial_folders(folder)
    ids = sorted(known, key=lambda key: known[key].number)
    ids += sorted(set(found) - set(known))
    return [_trial_row(key, known.get(key), found.get(key), record.ended) for key in ids]


_WORDS = {
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "SYS_CANCELED": "failed",
    "KILLED": "killed",
    "USER_CANCELED": "cancelled",
    "EARLY_STOPPED": "early stopped",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def _trial_row(key: str, known: TrialRecord | None, folder: Path | None, ended: bool) -> TrialRow:
    result, error = _read_result(folder)
    known = known or TrialRecord("SUCCEEDED" if result else "RUNNING")
    status = _WORDS.get(known.status, known.status.lower())
    if status in ("running", "waiting") and (ended or _abandoned(folder)):
        status = "stopped"
    if error is not None and status in ("succeeded", "running", "stopped"):
        status = "unreadable"
    if status in ("failed", "killed") and folder is not None:
        error = trial_log(folder, 1)
    seconds = None
    if known.start is not None and known.end is not None:
        seconds = (known.end - known.start) / 1000
    return _make_row(key, status, result, known, folder, seconds, error or None)


def _run_row(folder: Path) -> TrialRow:
    result, error = _read_result(folder)
    status = "succeeded" if result else "unreadable"
    if result is None and error is None:  # not finished yet, or never
        status = "running" if held(folder / ".lock") else "stopped"
    return _make_row(folder.resolve().name, status, result, TrialRecord(), folder, None, error)


def _abandoned(folder: Path | None) -> bool:
    """Tell whether a trial of this machine has begun and nobody runs it: all was killed at once."""
    if folder is None or not folder.parts[-3].startswith("local"):
        return False
    return (folder / ".lock").is_file() and not held(folder / ".lock")


def trial_log(folder: Path, lines: int) -> str:
    """Return the last lines of what a trial wrote, of its standard error if there is any."""
    texts = (last_lines(folder / name, lines) for name in ("trial.stderr", "trial.log"))
    return next(filter(None, texts), "")


def _read_result(folder: Path | None) -> tuple[_Result | None, str | None]:
    file = folder / "result.json" if folder is not None else None
    if file is None or not file.is_file():
        return None, None
    try:
        return _Result.model_validate_json(file.read_text(encoding="utf-8")), None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        return None, f"{file}: {reason}"


def _make_row(
    key: str,
    status: str,
    result: _Result | None,
    known: TrialRecord,
    folder: Path | None,
    seconds: float | None,
    error: str | None,
) -> TrialRow:
    metrics: Mapping[str, float | None] = result.metrics if result else _of_nni(known.metrics)
    stages = result.stages.values() if result else ()
    if seconds is None and stages:
        seconds = sum(stage.seconds for stage in stages)
    test = (result.test if result else None) or {}
    numbers = (
        "accuracy", "accuracy_dense", "accuracy_masked", "accuracy_small", "top5", "top5_dense",
        "top5_masked", "top5_small", "params", "params_ratio", "macs", "macs_ratio",
        "latency_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high",
    )  # fmt: skip
    return TrialRow(
        trial=key,
        status=status,
        name=result.name if result else None,
        method=(result.method if result else None) or _chosen_method(known.parameters),
        budget=(result.budget if result else None) or _chosen_budget(known.parameters),
        seconds=seconds,
        test_accuracy=test.get("accuracy"),
        test_accuracy_dense=test.get("accuracy_dense"),
        test_accuracy_masked=test.get("accuracy_masked"),
        test_accuracy_small=test.get("accuracy_small"),
        parameters=known.parameters,
        folder=str(folder) if folder is not None else None,
        error=error,
        metric=metrics.get("default") if metrics.get("accuracy") is None else None,
        progress=progress_of(folder) if result is None and folder is not None else None,
        validation_seen=result is not None and result.validation_seen,
        **{name: metrics.get(name) for name in numbers},
    )


def _of_nni(metrics: dict[str, float]) -> dict[str, float]:
    """Our trials tell NNI their accuracy as ``default``."""
    ours = "macs_ratio" in metrics and "default" in metrics
    return {"accuracy": metrics["default"], **metrics} if ours else metrics


def _chosen_method(parameters: dict[str, Any]) -> str | None:
    method = parameters.get("prune.method", parameters.get("sparsify.method"))
    return str(method) if method is not None else None


def _chosen_budget(parameters: dict[str, Any]) -> dict[str, Any] | None:
    chosen = {
        key.removeprefix("prune.budget."): value
        for key, value in parameters.items()
        if key.startswith("prune.budget.")
    }
    return chosen or None


def pareto_front(rows: Sequence[TrialRow], cost: str = "macs_ratio") -> list[TrialRow]:
    """Return the rows that no other beats in both accuracy and cost, by rising cost.

    Of a measured cost only what lies outside of both intervals is a difference: of two rows whose
    latencies overlap the more accurate one beats the other.

    Parameters
    ----------
    rows : sequence of TrialRow
        Rows without an accuracy or the cost are left out.
    cost : str, default "macs_ratio"
        Field to be small: ``macs_ratio``, ``params_ratio``, ``latency_ratio``, ...

    Returns
    -------
    list of TrialRow
        Of rows that are equal in both, the first.

    Examples
    --------
    >>> rows = [TrialRow("a", "succeeded", accuracy=0.9, macs_ratio=0.5),
    ...         TrialRow("b", "succeeded", accuracy=0.8, macs_ratio=0.6)]
    >>> [row.trial for row in pareto_front(rows)]
    ['a']
    """
    usable = [row for row in rows if row.accuracy is not None and getattr(row, cost) is not None]
    usable.sort(key=lambda row: (getattr(row, cost), -(row.accuracy or 0.0)))
    front: list[TrialRow] = []
    for number, row in enumerate(usable):
        others = [*usable[:number], *usable[number + 1 :]]
        equal = any(_point(row, cost) == _point(other, cost) for other in front)
        if not equal and not any(_beats(other, row, cost) for other in others):
            front.append(row)
    return front


def _point(row: TrialRow, cost: str) -> tuple[float, float]:
    return getattr(row, cost), row.accuracy or 0.0


def _beats(row: TrialRow, other: TrialRow, cost: str) -> bool:
    """Tell whether a row is no worse than another in both, and surely better in one."""
    gain = (row.accuracy or 0.0) - (other.accuracy or 0.0)
    (low, high), (other_low, other_high) = row.interval(cost), other.interval(cost)
    return gain >= 0 and low <= other_high and (gain > 0 or high < other_low)
