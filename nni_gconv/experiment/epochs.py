"""How far a run has come, from what it leaves on disk; nothing is locked or changed."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError
from nni_gconv.recipe import UNDER_WAY, shared_place
from nni_gconv.yaml12 import read_yaml

_METRICS = "metrics.jsonl"


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's epochs; a line that is damaged or half written is left out.

    Each has ``stage`` and ``epoch`` and numbers such as ``val_accuracy``.
    """
    try:
        lines = (folder / _METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"stage", "epoch"} <= set(record):
            records.append(record)
    return records


def progress_of(folder: Path) -> str | None:
    """Say what a run without a result has done last; None where nothing is known.

    Examples
    --------
    >>> progress_of(Path("runs/running"))  # doctest: +SKIP
    'finetune, epoch 3 of 8, accuracy 97.50 %'
    """
    under_way = _under_way(folder)
    if under_way:
        return under_way
    stages = list(_finished_stages(folder))
    file = folder / "recipe.yml"
    recipe = _read(file, _changed(file))
    records, where = epochs_of(folder), ""
    if not records and not stages:
        records, where = _shared_epochs(folder, recipe), ", shared by trials"
    if not records:
        return f"{stages[-1]} finished" if stages else None
    last = records[-1]
    if last["stage"] in stages:
        return f"{stages[-1]} finished"
    accuracy = last.get("val_accuracy")
    number = isinstance(accuracy, int | float)
    shown = f", accuracy {100 * accuracy:.2f} %" if number and accuracy is not None else ""
    stage = recipe.get(str(last["stage"]))
    every = stage.get("epochs") if isinstance(stage, dict) else None
    of = f" of {every}" if type(every) is int else ""
    return f"{last['stage']}{where}, epoch {last['epoch']}{of}{shown}"


def shared_seconds(folder: Path) -> float:
    """Return how long an ended trial trained a dense network for others too, or waited for it."""
    file = folder / "recipe.yml"
    train = _read(file, _changed(file)).get("train")
    if not isinstance(train, dict) or not train.get("share"):
        return 0.0
    seconds = _finished_stages(folder).get("train")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _under_way(folder: Path) -> str:
    """Return what the run says itself, unless it has finished an epoch or a stage since."""
    note = folder / UNDER_WAY
    if _changed(note) <= max(_changed(folder / name) for name in (_METRICS, "stages.json")):
        return ""
    try:
        return note.read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        return ""


def _shared_epochs(folder: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the epochs of the dense network that a trial trains for others too, or waits for."""
    try:
        share = recipe["train"]["share"]
        root = folder.parents[1] if share == "experiment" else Path(share)
        place = shared_place(recipe, root)
    except (KeyError, TypeError, IndexError):
        return []
    return [] if (place / "train.json").exists() else epochs_of(place)


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _read(recipe: Path, _changed: int) -> dict[str, Any]:
    """Read the recipe of a run; who watches asks again every second."""
    try:
        content = read_yaml(recipe.read_text(encoding="utf-8"), recipe.name)
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    return content if isinstance(content, dict) else {}


def _finished_stages(folder: Path) -> dict[str, Any]:
    """Return the seconds that each finished stage took."""
    try:
        stages = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = stages if isinstance(stages, dict) else {}
    return {
        str(name): entry.get("seconds") if isinstance(entry, dict) else None
        for name, entry in entries.items()
    }


def held(lock: Path) -> bool:
    """Tell whether a process of this machine holds a lock file.

    The system's own list is read: to try the lock would keep a run that starts just then out.
    """
    try:
        inode = lock.stat().st_ino
        entries = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(entry.split()[-3].endswith(f":{inode}") for entry in entries)
