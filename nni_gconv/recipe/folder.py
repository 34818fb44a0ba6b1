"""The folder of one trial: what is finished, and whose it is.

A trial writes nowhere else. Every file appears whole; a stage is finished when ``stages.json``
says so, which is written last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from nni_gconv import compat
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import write_json, write_text
from nni_gconv.recipe.schema import Recipe
from nni_gconv.training.distributed import Distributed

__all__ = ["TrialFolder", "choose_output", "first_difference"]

#: Keys that change where and how fast a trial runs, not what it computes.
_INCIDENTAL = ("device", "gpus", "threads")


def choose_output(recipe: Recipe, output: Path | None) -> Path:
    """Say where a trial writes: where asked, NNI's folder of the trial, or ``runs/NAME``."""
    if output is not None:
        return Path(output).expanduser()
    given = compat.trial_folder()
    return given if given is not None else Path("runs") / (recipe.name or "trial")


class TrialFolder:
    """Book-keeping of a trial's stages.

    Parameters
    ----------
    path : Path
        Made when missing.
    recipe : Recipe
        What is run; a folder that holds another recipe's run is refused.
    distributed : Distributed
        The main process locks and writes; the others follow.
    resume : bool
        Go on with what is there; False refuses a folder that holds a run.

    Raises
    ------
    ConfigError
        The folder holds a run of another recipe, any run with ``resume=False``, or another
        process is running in it.
    """

    def __init__(
        self, path: Path, recipe: Recipe, distributed: Distributed, *, resume: bool = True
    ) -> None:
        self.path = path
        self.stages: dict[str, dict[str, Any]] = {}
        self._file = path / "stages.json"
        self._distributed = distributed
        self._lock = FileLock(path / ".lock")
        if distributed.is_main:
            path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ConfigError(f"another process is running in {path}") from error
            try:
                self._claim(recipe, resume)
            except BaseException:
                self._lock.release()
                raise
        self.stages = distributed.broadcast_object(self.stages)

    def __enter__(self) -> TrialFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def _claim(self, recipe: Recipe, resume: bool) -> None:
        file = self.path / "recipe.yml"
        content = recipe.model_dump(mode="json")
        if file.is_file():
            if not resume:
                raise ConfigError(f"{self.path} holds a run already: choose another --output")
            try:
                before = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise CheckpointError(
                    f"{file} is damaged: choose another --output, or delete the folder"
                ) from error
            changed = first_difference(before, content)
            if changed:
                raise ConfigError(
                    f"{self.path} holds a run of another recipe ({changed}): "
                    "choose another --output"
                )
        else:
            write_text(file, yaml.safe_dump(content, sort_keys=False))
        if self._file.is_file():
            try:
                self.stages = json.loads(self._file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise CheckpointError(
                    f"{self._file} is damaged; delete it to start anew"
                ) from error

    def finished(self, stage: str) -> bool:
        """Tell whether a stage was finished by this or an earlier process."""
        return stage in self.stages

    def run(self, stage: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage unless it is finished; return its facts either way.

        Parameters
        ----------
        stage : str
            Its name.
        work : callable
            Writes the stage's files and returns facts: JSON-able numbers and words.
        """
        if not self.finished(stage):
            begun = time.monotonic()
            facts = work()
            self.stages[stage] = {"seconds": round(time.monotonic() - begun, 3), **facts}
            if self._distributed.is_main:
                write_json(self._file, self.stages)
        return self.stages[stage]


def first_difference(before: Any, now: Any, where: str = "") -> str | None:
    """Say where two contents of a recipe differ in what is computed, None where they do not.

    Examples
    --------
    >>> first_difference({"seed": 0, "threads": 1}, {"seed": 1, "threads": 2})
    'seed was 0, is 1'
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if not where and key in _INCIDENTAL:
                continue
            found = first_difference(
                before.get(key), now.get(key), f"{where}.{key}" if where else key
            )
            if found:
                return found
        return None
    return None if before == now else f"{where} was {before!r}, is {now!r}"
