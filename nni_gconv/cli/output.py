"""What the commands share: tables and JSON on standard output, the rest on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nni_gconv.report import TrialRow


def print_json(value: Any) -> None:
    """Write a value as JSON; what is no number (NaN, infinity) becomes null."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_trials(rows: Sequence[TrialRow], title: str | None = None) -> None:
    """Write trials as a coloured table on a terminal, as plain text into a pipe or file."""
    from rich.console import Console

    from nni_gconv.report import plain_table, rich_table, spread_table

    if sys.stdout.isatty():
        Console().print(rich_table(rows, title))
    else:
        typer.echo(plain_table(rows))
    over_seeds = spread_table(rows)
    if over_seeds is not None:
        typer.echo(str(over_seeds))


def note(text: str) -> None:
    """Write a line to standard error."""
    typer.echo(text, err=True)


def write_report(rows: Sequence[TrialRow], folder: Path, title: str) -> list[Path]:
    """Write the page, ``trials.csv``, ``trials.json`` and, where it can be drawn, the picture."""
    from nni_gconv.files import write_text
    from nni_gconv.report import json_rows, plot_trials, write_csv, write_html

    files = [write_html(rows, folder / "report.html", title=title)]
    files.append(write_csv(rows, folder / "trials.csv"))
    text = json.dumps(_finite(json_rows(rows)), indent=2, default=str)
    write_text(folder / "trials.json", text + "\n")
    files.append(folder / "trials.json")
    if any(row.accuracy is not None and row.macs_ratio is not None for row in rows):
        files.append(plot_trials(rows, folder / "accuracy_vs_macs.png", title=title))
    return files
