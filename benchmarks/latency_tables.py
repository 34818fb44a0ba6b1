"""The tables of docs/latency.md from the rows of benchmarks/latency.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Rows = Sequence[Mapping[str, Any]]
_FORMS = ("contiguous", "channels last", "optimized")


def write_page(page: Path, rows: Rows, threads: int) -> None:
    """Put every table in its place between two comments of the page."""
    devices = ", ".join(dict.fromkeys(str(row["device"]) for row in rows))
    machine = f"{devices}; {threads} thread(s), torch {torch.__version__}."
    tables = {"eager": eager_table(rows), "backends": backend_table(rows)}
    for name, text in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        head, found, rest = page.read_text(encoding="utf-8").partition(begin)
        if found:
            after = rest.partition(end)[2]
            page.write_text(f"{head}{begin}{machine}\n\n{text}\n{end}{after}", encoding="utf-8")


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write rows of a Markdown table."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *rows])


def eager_table(rows: Rows) -> str:
    """Every small network, as it is and optimized, over the dense one, and over that folded."""
    header = [
        "network", "batch", "small network", "MACs", *_FORMS,
        "optimized / dense folded",
    ]  # fmt: skip
    lines = []
    for (model, batch, kind), forms in _cases(row for row in rows if row["backend"] == "eager"):
        cells = [model, batch, kind, f"{float(forms['optimized']['macs_left']):.2f}"]
        cells += [f"{float(forms[form]['ratio']):.2f}" for form in _FORMS]
        best = forms["optimized"]
        low, high = (float(best[key]) for key in ("folded_low", "folded_high"))
        cells.append(f"{float(best['folded']):.2f} ({low:.2f} to {high:.2f})")
        if kind == "dense":
            milliseconds = float(forms["contiguous"]["ms"])
            cells[2] = f"dense, {milliseconds:.1f} ms"
        elif best["groups_paid"] == "False":
            cells[2] += ", as dense layers"
        lines.append(cells)
    return table(header, lines)


def backend_table(rows: Rows) -> str:
    """Small over dense on each back-end."""
    backends = [b for b in dict.fromkeys(row["backend"] for row in rows) if b != "eager"]
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if row["backend"] in backends:
            key = (row["model"], str(row["batch"]), row["kind"])
            shown = (
                f"{float(row['ratio']):.2f} ({float(row['low']):.2f} to {float(row['high']):.2f})"
            )
            if row["kind"] == "dense":
                shown = f"{float(row['ms']):.1f} ms"
            found.setdefault(key, {})[row["backend"]] = shown
    lines = [[*key, *(cells.get(b, "") for b in backends)] for key, cells in found.items()]
    return table(["network", "batch", "small network", *backends], lines)


def _cases(
    rows: Iterable[Mapping[str, Any]],
) -> Iterable[tuple[tuple[str, str, str], dict[str, Mapping[str, Any]]]]:
    grouped: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["model"], str(row["batch"]), row["kind"])
        grouped.setdefault(key, {})[row["form"]] = row
    return grouped.items()
