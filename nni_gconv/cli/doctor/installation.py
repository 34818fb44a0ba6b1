"""``nni-gconv doctor`` without arguments: what of the installation will not work."""

from __future__ import annotations

import sys

import typer

from nni_gconv.cli.output import print_json

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


def doctor_installation(*, as_json: bool) -> int:
    """Print a table, or JSON, of what was looked at; return 0 unless something blocks, then 2."""
    from rich.console import Console

    from nni_gconv.installation import blocks, examine

    # On a terminal alone; packages take seconds to load.
    with Console(stderr=True).status("loading what is installed, each in a process of its own"):
        found = examine()
    code = 2 if blocks(found) else 0
    if as_json:
        print_json([one.to_dict() for one in found])
        return code
    if not sys.stdout.isatty():
        typer.echo("\n".join(one.line() for one in found))
        return code
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for one in found:
        colour = _COLOURS[one.state]
        fix = f"\n[bold]fix:[/] {escape(one.remedy)}" if one.remedy else ""
        table.add_row(f"[{colour}]{one.state}[/]", one.what, escape(one.text) + fix)
    Console().print(table)
    return code
