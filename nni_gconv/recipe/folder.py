"""The folder of one trial: what is finished, and whose it is.

A trial writes nowhere else. Every file appears whole; a stage is finished when ``stages.json``
says so, which is written last.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import Timeout
from pydantic import BaseModel

from nni_gconv import compat
from nni_gconv.display import Stages
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import links_in, lock_of, sweep, write_json, write_text
from nni_gconv.recipe.schema import Recipe
from nni_gconv.recipe.seal import UNDER_WAY, State, opened, sealed, state_of, written_since
from nni_gconv.training import Distributed
from nni_gconv.yaml12 import read_yaml, write_yaml

#: Keys that change where and how fast a trial runs, not what it computes.
_INCIDENTAL = ("device", "gpus", "threads")
#: Keys that the first stage depends on: its checkpoint serves any recipe in which they are equal.
_OF_TRAINING = ("seed", "model", "data", "train")
#: What an unfinished stage leaves.
_LEFTOVERS = ("train", "sparsify", "finetune", "tensorboard", "metrics.jsonl")


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
        self._files: dict[str, dict[str, list[Any]]] = {}
        self._file = path / "stages.json"
        self._distributed = distributed
        self.shown = Stages(path.name, enabled=False)
        self._made = not path.exists()
        if distributed.is_main:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_of(path / ".lock")
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
        if self._distributed.is_main:
            if error is not None and self._made:
                self._leave_no_trace()
            self._lock.release()

    def _leave_no_trace(self) -> None:
        """Take away a folder in which nothing was done: a mistake in a recipe leaves none."""
        ours = [self.path / name for name in ("recipe.yml", "metrics.jsonl", ".lock", UNDER_WAY)]
        events = self.path / "tensorboard"
        there = set(self.path.iterdir()) - {events}
        if self.stages or not there <= set(ours) or _holds(ours[1]) or events.is_dir():
            return
        for file in ours:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _claim(self, recipe: Recipe, resume: bool) -> None:
        """Make the folder this recipe's; one in which no stage has finished is free."""
        sweep(self.path)
        links = links_in(self.path)
        if links:
            raise ConfigError(
                f"{links[0]} is a link: a trial writes nowhere but in its folder; remove it, or "
                "choose another --output"
            )
        file = self.path / "recipe.yml"
        content = recipe.model_dump(mode="json")
        before = _completed(_read_recipe(file), recipe, content)
        if before is None and file.is_file() and self._file.is_file():
            raise CheckpointError(
                f"{file} is damaged: choose another --output, or delete the folder"
            )
        self._read_stages()
        if self.stages and not resume:
            raise ConfigError(f"{self.path} holds a run already: choose another --output")
        if self.stages and before is None:
            raise CheckpointError(
                f"{file} is missing: choose another --output, or delete the folder"
            )
        changed = "" if before is None else first_difference(before, content)
        if changed and self.stages:
            raise ConfigError(
                f"{self.path} holds a run of another recipe ({changed}): "
                f"choose another --output (the recipe of that run is {file})"
            )
        if not self.stages and not _goes_on(before, content, resume):
            self._put_aside()
        if before is None or changed:
            write_text(file, write_yaml(content))

    def _read_stages(self) -> None:
        if not self._file.is_file():
            return
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self._file} is damaged; delete it to begin with the first stage again"
            ) from error
        for name, entry in found.items():
            self.stages[name], self._files[name] = opened(self._file, name, entry)

    def _put_aside(self) -> None:
        """Move what an unfinished run of another recipe left; epochs it trained are not lost."""
        found = [self.path / name for name in _LEFTOVERS if (self.path / name).exists()]
        if not any(self.path.glob("*/checkpoint.pt")):
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        number = 1
        while (self.path / f"earlier-{number}").exists():
            number += 1
        target = self.path / f"earlier-{number}"
        target.mkdir()
        for path in found:
            path.replace(target / path.name)
        sys.stderr.write(f"an unfinished run of another recipe was moved to {target}\n")

    def note(self, text: str) -> None:
        """Say how far the stage under way is, for those who watch the folder."""
        with contextlib.suppress(OSError):  # a full disk ends the run elsewhere
            write_text(self.path / UNDER_WAY, text)

    def finished(self, stage: str) -> bool:
        """Tell whether a stage was finished by this or an earlier process."""
        return stage in self.stages

    def run(
        self, stage: str, work: Callable[[], dict[str, Any]], *, bar: bool = True
    ) -> dict[str, Any]:
        """Run a stage unless it is finished; return its facts either way.

        Parameters
        ----------
        stage : str
            Its name.
        work : callable
            Writes the stage's files and returns facts: JSON-able numbers and words.
        bar : bool, default True
            Whether a terminal shows a bar; not where the stage trains, which shows its own.
        """
        if not self.finished(stage):
            begun = time.monotonic()
            before: State = state_of(self.path) if self._distributed.is_main else {}
            with self.shown.stage(stage, bar=bar) as told:
                facts = work()
                told.result = _in_words(facts)
            self.stages[stage] = {"seconds": round(time.monotonic() - begun, 3), **facts}
            if self._distributed.is_main:
                self._files[stage] = written_since(self.path, before)
                content = {
                    name: sealed(name, found, self._files.get(name, {}))
                    for name, found in self.stages.items()
                }
                write_json(self._file, content)
                (self.path / UNDER_WAY).unlink(missing_ok=True)
        return self.stages[stage]


def _in_words(facts: Mapping[str, Any]) -> str:
    """Say in a few words what a stage came to."""
    said = []
    if "val_accuracy" in facts:
        said.append(f"val accuracy {facts['val_accuracy']:.4f}")
    if facts.get("difference") is not None:
        said.append(f"equal to the masked network ({facts['difference']:.1e})")
    for which, value in facts.get("accuracy", {}).get("val", {}).items():
        if which.startswith("accuracy"):
            said.append(f"val accuracy {which.removeprefix('accuracy_')} {value:.4f}")
    return ", ".join(said)


def _read_recipe(file: Path) -> Any:
    """Return the recipe that a folder was begun with, None where there is none to be read."""
    try:
        return read_yaml(file.read_text(encoding="utf-8"), file.name) or None
    except (FileNotFoundError, ConfigError, UnicodeDecodeError):
        return None


def _completed(before: Any, section: BaseModel, now: dict[str, Any]) -> Any:
    """Give a content the keys that an earlier version did not know, where `now` has their defaults.

    The content is compared and never validated: that would import what a file in the folder names.
    """
    if not isinstance(before, dict):
        return before
    found = dict(before)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in found and value == field.get_default(call_default_factory=True):
            found[name] = now[name]
        elif isinstance(value, BaseModel):
            found[name] = _completed(found.get(name), value, now[name])
    return found


def _goes_on(before: Any, now: dict[str, Any], resume: bool) -> bool:
    """Tell whether what an unfinished run left serves this recipe."""
    if not resume or not isinstance(before, dict):
        return False
    keys = now if now.get("train") is None else _OF_TRAINING
    return all(before.get(key) == now[key] for key in keys if key not in _INCIDENTAL)


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


def _holds(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0
