"""Files that are there whole or not at all, and that are still as they were written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from nni_gconv.errors import ConfigError, nearest

_PART = re.compile(r"\.part-\d+-.+")
_CHUNK = 1 << 20
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def shipped_folder(name: str) -> Path:
    """Return a folder that comes with the package, of a wheel, an editable install or a checkout.

    Examples
    --------
    >>> (shipped_folder("docs") / "recipe.md").is_file()
    True
    """
    package = Path(__file__).resolve().parent
    installed = package / "_files" / name
    return installed if installed.is_dir() else package.parent / name


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block succeeds.

    The bytes reach the disk before the name does, and a link is replaced, not followed.

    Raises
    ------
    OSError
        The disk is full, or the folder is not writable, also where the writer inside the block
        hides that in an error of its own; what stood at `path` before still does.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers go by it.
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers make a file that only its owner can read; it shall be as others are.
        temporary.chmod(mode)
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    except Exception as error:
        hidden = _hidden_os_error(error)
        if hidden is None:
            raise
        raise OSError(hidden, os.strerror(hidden), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file or the names of a folder are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise  # some file systems have no such thing for folders
    finally:
        os.close(number)


def _hidden_os_error(error: BaseException) -> int | None:
    """Return the number of the system's error that a writer's own error stands for, else None."""
    if isinstance(error, OSError):
        return error.errno
    inner = error.__cause__ or error.__context__
    found = re.search(r"os error (\d+)", str(error))  # as Rust's libraries say it
    if found:
        return int(found[1])
    return _hidden_os_error(inner) if inner is not None else None


def sweep(folder: Path) -> list[Path]:
    """Remove temporary files that killed processes left under a folder; return their paths.

    Only for a folder that this process has locked.
    """
    found = [path for path in folder.rglob(".part-*") if _PART.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def links_in(folder: Path) -> list[Path]:
    """Return every symbolic link under a folder: writing through one would change other places."""
    links = []
    for place, folders, files in os.walk(folder):
        links += [
            Path(place, name) for name in [*folders, *files] if Path(place, name).is_symlink()
        ]
    return sorted(links)


def lock_of(path: Path, timeout: float = -1) -> FileLock:
    """Return the lock that a file stands for; acquiring one empties its file, so no link is taken.

    Raises
    ------
    ConfigError
        A link stands in its place.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ConfigError(f"{path} is a link: remove it") from None
        raise
    return FileLock(path, timeout=timeout)


def file_digest(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `size` bytes."""
    digest = hashlib.sha256()
    left = size
    with path.open("rb") as file:
        while data := file.read(_CHUNK if left is None else min(_CHUNK, left)):
            digest.update(data)
            left = None if left is None else left - len(data)
    return digest.hexdigest()


def sort_header(path: Path) -> None:
    """Give the head of a safetensors file one order: its library writes metadata in any.

    Equal content then makes equal bytes.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        head = json.loads(file.read(length))
        text = json.dumps(
            {key: _sorted(head[key]) if key == "__metadata__" else head[key] for key in head},
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _sorted(metadata: dict[str, str]) -> dict[str, str]:
    return {key: metadata[key] for key in sorted(metadata)}


@contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place when the block ends well.

    Parameters
    ----------
    path : str or Path
        File to be written; its folder is made.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    ConfigError
        The file or its folder cannot be written.
    """
    path = Path(path).expanduser()
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole, indented for people."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def files_nearby(path: Path) -> str:
    """Write the end of a message on a file that is not there: those of its folder named nearly so.

    Examples
    --------
    >>> files_nearby(Path("/nowhere/recipe.yml"))
    ''
    """
    close = nearest(path.name, [p.name for p in path.parent.glob("*") if p.is_file()])
    return f"; nearest: {', '.join(close)}" if close else ""
