"""How much code goes to each machine: counted as NNI packs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Where NNI refuses.
MAX_FILES, MAX_BYTES = 2000, 300 * 1024**2


@dataclass(frozen=True)
class CodeSize:
    """What would be sent.

    Attributes
    ----------
    files, size : int
        Count and bytes, before compression.
    largest : tuple of (str, int)
        The three largest top-level entries, with their bytes.
    """

    files: int
    size: int
    largest: tuple[tuple[str, int], ...]


def code_size(folder: Path) -> CodeSize:
    r"""Count what NNI sends of a code directory: everything that ``.nniignore`` does not name.

    Parameters
    ----------
    folder : Path
        ``trialCodeDirectory``.

    Returns
    -------
    CodeSize
        Counting stops soon after NNI's own limits (2000 files, 300 MiB).

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "train.py").write_text("x" * 10), (folder / "big.bin").write_text("y" * 99)
    >>> _ = (folder / ".nniignore").write_text("*.bin\n")
    >>> code_size(folder).largest
    (('train.py', 10), ('.nniignore', 6))
    """
    sizes: dict[str, int] = {}
    files = 0
    for name, size in _walk(folder):
        top = name.split("/", 1)[0]
        sizes[top] = sizes.get(top, 0) + size
        files += 1
        if files > 10 * MAX_FILES or sum(sizes.values()) > 10 * MAX_BYTES:
            break
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    return CodeSize(files, sum(sizes.values()), tuple(largest))


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    from pathspec import GitIgnoreSpec

    try:
        lines = (folder / ".nniignore").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    ignored = GitIgnoreSpec.from_lines(lines)
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [
            one for one in folders if not ignored.match_file(f"{(inside / one).as_posix()}/")
        ]
        for name in names:
            path = (inside / name).as_posix()
            if not ignored.match_file(path):
                yield path, (folder / path).lstat().st_size
