"""Numbers of a run: a line of JSON each epoch, TensorBoard, and NNI's intermediate results."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nni_gconv import compat
from nni_gconv.errors import ConfigError, DataError
from nni_gconv.files import write_text
from nni_gconv.training.logs.tensorboard import Events
from nni_gconv.training.logs.trackers import Tracker

FILE_NAME = "metrics.jsonl"


def check_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return `metrics` if each value is a finite number.

    Raises
    ------
    ConfigError
        One is not; the message names it.

    Examples
    --------
    >>> check_numbers({"loss": 0.5})
    {'loss': 0.5}
    """
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            kind = type(value).__name__
            raise ConfigError(f"metric {name!r} is a {kind}; NNI and the log take numbers only")
        if not math.isfinite(value):
            raise ConfigError(f"metric {name!r} is {value}; NNI and the log take finite numbers")
    return {name: v if isinstance(v, int) else float(v) for name, v in metrics.items()}


class MetricLog:
    """Writes what each epoch gave to every place that shows it.

    - ``directory/metrics.jsonl``: ``{"stage": "train", "epoch": 3, "loss": 1.2, ...}``;
    - ``directory/tensorboard``: scalars ``stage/name``, histograms and images;
    - NNI, when a trial runs under it: ``{"default", "loss", "lr", "sparsity"}``.

    An epoch of a stage is written once, however often it is reported: a resumed run repeats
    what it may have lost and nothing appears twice. NNI is first given the epochs that are
    already in the file, without those that it has of this trial.

    Parameters
    ----------
    directory : Path
        Created when missing.
    tensorboard : bool, default True
        Write TensorBoard events.
    nni : bool, optional
        Report to NNI; default: when running under it. In a distributed run only the main
        process should have a log.
    trackers : sequence of Tracker
        Where fresh numbers are shown too.

    Raises
    ------
    DataError
        The metrics file holds a line that is no record (an incomplete last line is repaired).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MetricLog(Path(folder), tensorboard=False) as log:
    ...         _ = log.write("train", 1, {"loss": 0.5, "val_accuracy": 0.9, "lr": 0.1})
    ...         log.write("train", 1, {"loss": 0.5, "val_accuracy": 0.9, "lr": 0.1})
    ...         log.records("train")
    False
    [{'stage': 'train', 'epoch': 1, 'loss': 0.5, 'val_accuracy': 0.9, 'lr': 0.1}]
    """

    def __init__(
        self,
        directory: Path,
        *,
        tensorboard: bool = True,
        nni: bool | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.trackers = list(trackers)
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / FILE_NAME
        self._events = Events(self.directory / "tensorboard") if tensorboard else None
        self._nni = compat.running_under_nni() if nni is None else nni
        self._records = self._read()
        told = compat.continue_intermediates() if self._nni else 0
        shown = [i for i, record in enumerate(self._records) if "val_accuracy" in record]
        self._reported = shown[min(told, len(shown)) - 1] + 1 if told and shown else 0
        self._earlier = self._reported  # records that an earlier process told NNI of
        self._told_before = told - min(told, len(shown))  # reports whose records are gone
        for record in self._records:  # those that a kill kept from TensorBoard's file
            self._write_scalars(record)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, stage: str, epoch: int, metrics: Mapping[str, Any]) -> bool:
        """Record the numbers of one epoch.

        Parameters
        ----------
        stage : str
            ``train``, ``sparsify``, ``finetune``, ...
        epoch : int
            From 1.
        metrics : mapping of str to number
            Flat and finite. ``val_accuracy`` (a fraction of 1), ``loss``, ``lr`` and
            ``sparsity`` (default 0) go to NNI.

        Returns
        -------
        bool
            False when this epoch was there already (NNI is still given it once).
        """
        record: dict[str, Any] = {"stage": stage, "epoch": epoch, **check_numbers(metrics)}
        fresh = all((r["stage"], r["epoch"]) != (stage, epoch) for r in self._records)
        if fresh:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._records.append(record)
            self._write_scalars(record)
            for tracker in self.trackers:
                named = {k: v for k, v in record.items() if k not in ("stage", "epoch")}
                tracker.numbers({f"{stage}/{k}": v for k, v in named.items()}, epoch)
            if self._events is not None:
                self._events.flush()
        self._report()
        return fresh

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return all records, or those of one stage, oldest first."""
        return [dict(r) for r in self._records if stage in (None, r["stage"])]

    def forget(self, stage: str) -> None:
        """Remove the records of a stage that begins again."""
        if self._events is not None:
            self._events.forget(f"{stage}/")
        kept = [r for r in self._records if r["stage"] != stage]
        if len(kept) == len(self._records):
            return
        lost = [r for r in self._records[: self._earlier] if r["stage"] == stage]
        self._told_before += sum("val_accuracy" in record for record in lost)
        self._earlier -= len(lost)
        self._reported = sum(r["stage"] != stage for r in self._records[: self._reported])
        self._records = kept
        self._rewrite()

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        """Write the distribution of `values` to TensorBoard, unless it is there already."""
        if self._events is not None:
            self._events.histogram(tag, values, step)

    def image(self, tag: str, image: torch.Tensor, step: int) -> None:
        """Write `image` (C, H, W), numbers in [0, 1] or uint8, to TensorBoard, likewise."""
        if self._events is not None:
            self._events.image(tag, image, step)

    def close(self) -> None:
        """Flush and close TensorBoard's file, and end what trackers show."""
        for tracker in self.trackers:
            tracker.close()
        if self._events is not None:
            self._events.close()

    def _report(self) -> None:
        if not self._nni:
            return
        for record in self._records[self._reported :]:
            if "val_accuracy" in record and self._told_before:
                self._told_before -= 1  # a stage that began again: NNI has this epoch
            elif "val_accuracy" in record:
                compat.report_intermediate(
                    {
                        "default": record["val_accuracy"],
                        "loss": record.get("loss", 0.0),
                        "lr": record.get("lr", 0.0),
                        "sparsity": record.get("sparsity", 0.0),
                    }
                )
        self._reported = len(self._records)

    def _write_scalars(self, record: Mapping[str, Any]) -> None:
        if self._events is None:
            return
        for name, value in record.items():
            if name not in ("stage", "epoch"):
                self._events.scalar(f"{record['stage']}/{name}", value, record["epoch"])

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole, _, torn = text.rpartition("\n")
        records = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                stage, epoch = record["stage"], record["epoch"]
                if not isinstance(stage, str) or type(epoch) is not int:
                    raise TypeError
                check_numbers({k: v for k, v in record.items() if k != "stage"})
            except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
                raise DataError(
                    f"{self.path}:{number}: not a record of metrics; remove that line"
                ) from error
            records.append(record)
        if torn:  # the process was killed while it wrote this line
            self._records = records
            self._rewrite()
        return records

    def _rewrite(self) -> None:
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self._records))
