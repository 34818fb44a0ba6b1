"""Files at paths a user gives: whole or not at all, and errors that say which."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nni_gconv.errors import ConfigError
from nni_gconv.files import atomic_path

__all__ = ["output_file"]


@contextlib.contextmanager
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
