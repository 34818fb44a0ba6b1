"""Tables that scripts write into pages of the documentation."""

from __future__ import annotations

from pathlib import Path

from nni_gconv.errors import ConfigError
from nni_gconv.files import write_text


def fill(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two comments of a page, which stay."""
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ConfigError(f"{page}: has no place for the table: write {begin.strip()} and {end}")
    write_text(page, f"{head}{begin}{text}{end}{after}")
