"""Files that are either there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block succeeds.

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
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers make a file that only its owner can read; it shall be as others are.
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
