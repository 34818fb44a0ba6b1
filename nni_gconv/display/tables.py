"""Tables for people: of rich, and readable by ``print`` too.

>>> table = Table("layer", "kept", title="what is left")
>>> table.add_row("conv1", "8")
>>> print(table)
 what is left
┏━━━━━━━┳━━━━━━┓
┃ layer ┃ kept ┃
┡━━━━━━━╇━━━━━━┩
│ conv1 │ 8    │
└───────┴──────┘
"""

from __future__ import annotations

import io
import shutil
from html import escape
from typing import Any

import rich.table
from rich.console import Console

#: Narrowest table: in less, names of layers break into letters.
_LEAST = 100


class Table(rich.table.Table):
    """A table of rich that ``print`` and ``str`` show as well."""

    def __str__(self) -> str:
        return as_text(self)


def as_text(*parts: Any) -> str:
    """Return what rich would show, one below the other, without colour.

    Parameters
    ----------
    *parts : str or of rich
        Such as tables.
    """
    wide = max(_LEAST, shutil.get_terminal_size().columns)
    console = Console(file=io.StringIO(), width=wide, color_system=None, legacy_windows=False)
    with console.capture() as shown:
        for part in parts:
            console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in shown.get().rstrip().splitlines())


def as_html(*parts: Any) -> str:
    """Return the same for a notebook."""
    return f"<pre style='line-height: 1.1; white-space: pre'>{escape(as_text(*parts))}</pre>"
