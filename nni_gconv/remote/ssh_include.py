"""``Include`` in an SSH configuration, which paramiko passes over: all files as one text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from nni_gconv.errors import ConfigError

_LINE = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*\S)")
_DEEPEST = 16  # as ssh


def read_with_includes(file: Path) -> str:
    """Read an SSH configuration with the files that it includes in their places.

    Parameters
    ----------
    file : Path
        The configuration; relative paths in it start from its folder.

    Raises
    ------
    ConfigError
        Files include each other without end.
    OSError, ValueError
        A file cannot be read.
    """
    return "\n".join(_lines(file, file.parent, "", 0)) + "\n"


def _lines(file: Path, folder: Path, around: str, depth: int) -> Iterator[str]:
    """Yield the lines of a file; `around` is the condition of the blocks that include it."""
    if depth > _DEEPEST:
        raise ConfigError(f"{file}: included more than {_DEEPEST} deep")
    block, condition = _block(around), around
    if depth:
        yield block
    for line in file.read_text(encoding="utf-8").splitlines():
        found = _LINE.match(line)
        word, value = (found[1].lower(), found[2]) if found else ("", "")
        if word == "include":
            for one in _included(value, folder):
                yield from _lines(one, folder, condition, depth + 1)
            yield block
        elif word in ("host", "match"):
            condition = f"{around} {_condition(word, value)}".strip()
            block = _block(condition) if around else line
            yield block
        else:
            yield line


def _included(value: str, folder: Path) -> Iterator[Path]:
    for pattern in shlex.split(value):
        # ssh passes over what is not there, too.
        full = folder / Path(pattern).expanduser()
        found = Path(full.anchor).glob(str(full.relative_to(full.anchor)))
        yield from (one for one in sorted(found) if one.is_file())


def _condition(word: str, value: str) -> str:
    """Write a block's condition as ``Match`` takes it, so that several can hold together."""
    if word == "host":
        return f"originalhost {shlex.quote(','.join(shlex.split(value)))}"
    return "" if value.lower() == "all" else value


def _block(condition: str) -> str:
    return f"Match {condition}" if condition else "Host *"
