"""What a finished stage left, and whether it still is what was left.

``stages.json`` holds for each stage its facts, ``files``: the size and SHA-256 of every file that
the stage wrote, and ``sha256``: that of the entry itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_gconv.errors import CheckpointError
from nni_gconv.files import file_digest

#: File that says how far the stage under way is; a hint for those who look, not a result.
UNDER_WAY = ".under_way"
#: What no stage leaves: the book-keeping, NNI's and TensorBoard's files (which have sums inside).
_OTHERS = ("stages.json", "recipe.yml", "result.json", "nni_told.json", "train.json")
_SHARED_DENSE = "nni_gconv_dense"
_OTHER_FOLDERS = ("tensorboard", _SHARED_DENSE, "calibration", "code")
_GROWING = ".jsonl"

State = dict[str, tuple[int, int, int]]


def shared_place(content: Mapping[str, Any], root: Path) -> Path:
    """Name the folder of the dense network that trials share which ask for the same one.

    Parameters
    ----------
    content : mapping
        A whole recipe with a section ``train``, as a trial keeps it in ``recipe.yml``.
    root : Path
        Where trials share.
    """
    asked = {key: content[key] for key in ("model", "data", "train", "seed")}
    asked["train"] = {key: value for key, value in asked["train"].items() if key != "share"}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    return root / _SHARED_DENSE / digest


def state_of(folder: Path) -> State:
    """Note size, time and number of every file of a trial, to see later which were written."""
    found: State = {}
    for place, folders, files in os.walk(folder):
        hidden = [name for name in folders if name.startswith((".", "earlier-"))]
        folders[:] = [name for name in folders if name not in (*_OTHER_FOLDERS, *hidden)]
        for name in files:
            if name not in _OTHERS and not name.startswith((".", "trial.")):
                about = Path(place, name).lstat()
                key = Path(place, name).relative_to(folder).as_posix()
                found[key] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def written_since(folder: Path, before: State) -> dict[str, list[Any]]:
    """Return size and SHA-256 of every file that has changed since, by its path in the folder."""
    changed = [key for key, about in state_of(folder).items() if before.get(key) != about]
    return {key: _about(folder / key) for key in sorted(changed)}


def _about(file: Path) -> list[Any]:
    size = file.stat().st_size
    return [size, file_digest(file, size)]


def sealed(name: str, facts: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a stage for ``stages.json``."""
    entry = json.loads(json.dumps({**facts, "files": dict(files)}))  # as it will be read back
    return {**entry, "sha256": _digest(name, entry)}


def _digest(name: str, entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, entry], sort_keys=True).encode()).hexdigest()


def opened(file: Path, name: str, entry: object) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Take the entry of a stage apart into facts and files, and check both.

    Raises
    ------
    CheckpointError
        The entry is not as it was written, or a file beside it is not; the message says which. An
        entry of a version that wrote no sums is taken as it is.
    """
    if not isinstance(entry, dict):
        raise CheckpointError(_damaged(file))
    entry = dict(entry)
    digest = entry.pop("sha256", None)
    if digest is None and "files" not in entry:
        return entry, {}
    if digest != _digest(name, entry):
        raise CheckpointError(_damaged(file))
    files = entry.pop("files")
    for key, (size, sum_) in files.items():
        check_file(file.parent / key, size, sum_, name)
    return entry, files


def check_file(file: Path, size: int, digest: str, stage: str) -> None:
    """Check a file that a stage left; one that is gone is missed where it is used.

    Raises
    ------
    CheckpointError
        It holds other bytes than the stage wrote.
    """
    if not file.is_file():
        return
    now = file.stat().st_size
    same = now >= size if file.suffix == _GROWING else now == size
    if not same or file_digest(file, size) != digest:
        raise CheckpointError(
            f"{file} is damaged: it is not what stage {stage} wrote (SHA-256 differs); put back a "
            "copy, or begin anew in another --output"
        )


def _damaged(file: Path) -> str:
    return f"{file} is damaged; delete it to begin with the first stage again"
