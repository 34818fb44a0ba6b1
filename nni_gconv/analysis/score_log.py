"""Scores on disk, a line each as it is measured, so that a run that was killed goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from nni_gconv.analysis.curves import Score
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import write_text

_FORMAT = 1


class ScoreFile:
    """Scores by set and number of channels removed; kept in a file, or only in memory.

    The first line of the file says what was measured; a file of something else is refused.

    Parameters
    ----------
    path : Path or None
        A file of JSON lines, made when missing. None: no file.
    subject : mapping of str to str
        What is measured, each value with what to call it: ``{"weights": digest, ...}``.

    Raises
    ------
    ConfigError
        The file holds scores of something else, or another process writes to it.
    CheckpointError
        The file is damaged.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scores.jsonl"
    >>> with ScoreFile(path, {"weights": "1f"}) as scores:
    ...     scores.add(0, 2, Score(0.9, 0.3))
    >>> with ScoreFile(path, {"weights": "1f"}) as scores:
    ...     scores.get(0, 2)
    Score(accuracy=0.9, loss=0.3)
    """

    def __init__(self, path: Path | None, subject: Mapping[str, str]) -> None:
        self.path, self.subject = path, dict(subject)
        self._scores: dict[tuple[int, int], Score] = {}

    def __enter__(self) -> ScoreFile:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ConfigError(f"another process is writing to {self.path}") from error
            try:
                self._read(self.path)
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path is not None:
            self._lock.release()

    def get(self, number: int, removed: int) -> Score | None:
        """Return the score with so many channels of set `number` removed, if it is known."""
        return self._scores.get((number, removed))

    def add(self, number: int, removed: int, score: Score) -> None:
        """Keep a score; it is on disk when this returns."""
        self._scores[number, removed] = score
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line([number, removed, score.accuracy, _or_null(score.loss)]))

    def _read(self, path: Path) -> None:
        head = _line({"format": _FORMAT, **self.subject})
        if not path.is_file() or not path.stat().st_size:
            write_text(path, head)
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        try:
            first, *rest = [json.loads(line) for line in whole.splitlines()]
            self._check(first)
            for number, removed, accuracy, loss in rest:
                score = Score(float(accuracy), math.nan if loss is None else float(loss))
                self._scores[int(number), int(removed)] = score
        except (ValueError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise CheckpointError(f"{path} is damaged; delete it to measure anew") from error
        if whole != text:
            # Whoever wrote it was killed in the middle of the last line.
            write_text(path, whole)

    def _check(self, found: Mapping[str, Any]) -> None:
        expected = {"format": _FORMAT, **self.subject}
        other = [key for key, value in expected.items() if found.get(key) != value]
        if other:
            raise ConfigError(
                f"{self.path} holds scores measured with other {', '.join(other)}: "
                "choose another output, or delete it"
            )


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False) + "\n"


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
