"""Trials as a table: on a terminal, as plain text, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gconv.files import output_file
from nni_gconv.report.collect import TrialRow, pareto_front

if TYPE_CHECKING:
    from nni_gconv.display import Table

_CSV_FIELDS = (
    "trial", "status", "name", "method", "budget", "accuracy", "accuracy_dense", "delta", "params",
    "params_ratio", "macs", "macs_ratio", "latency_ms", "latency_ratio",
    "latency_ratio_low", "latency_ratio_high", "seconds",
    "test_accuracy", "test_accuracy_dense", "accuracy_masked", "accuracy_small", "top5",
    "top5_dense", "top5_masked", "top5_small", "test_accuracy_masked", "test_accuracy_small",
    "folder", "error", "metric", "progress",
)  # fmt: skip


def format_budget(budget: Mapping[str, Any] | None) -> str:
    """Write a budget the way it stands in a recipe.

    Examples
    --------
    >>> format_budget({"macs": 0.5})
    'macs 0.5'
    """
    return ", ".join(f"{key} {_short(value)}" for key, value in (budget or {}).items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def percent(value: float | None) -> str:
    """Write a fraction in percent, "" for none."""
    return "" if value is None else f"{100 * value:.2f}"


def points(value: float | None) -> str:
    """Write a difference of fractions in points with its sign, "" for none."""
    return "" if value is None else f"{100 * value:+.2f}"


def ratio(value: float | None) -> str:
    """Write a ratio, "" for none."""
    return "" if value is None else f"{value:.3f}"


def metric(value: float | None) -> str:
    """Write NNI's metric of a trial that is not ours, "" for none."""
    return "" if value is None else f"{value:.6g}"


def latency_text(row: TrialRow) -> str:
    """Write the ratio of latencies, with half the width of its interval where that is known.

    Examples
    --------
    >>> latency_text(TrialRow("a", "succeeded", latency_ratio=0.5, latency_ratio_low=0.49,
    ...                       latency_ratio_high=0.52))
    '0.500±0.015'
    """
    if row.latency_ratio is None or row.latency_ratio_low is None or row.latency_ratio_high is None:
        return ratio(row.latency_ratio)
    half = (row.latency_ratio_high - row.latency_ratio_low) / 2
    return f"{row.latency_ratio:.3f}±{half:.3f}"


def _short_latency(row: TrialRow) -> str:
    whole, _, half = latency_text(row).partition("±")
    return f"{float(whole):.2f}±{float(half):.2f}" if half else whole


def _parameters(row: TrialRow) -> str:
    """Write what the tuner chose, of a trial whose method and budget say nothing."""
    if row.metric is None:
        return ""
    text = ", ".join(f"{key}={_short(value)}" for key, value in row.parameters.items())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def telling(rows: Sequence[TrialRow]) -> dict[str, str]:
    """Name what else the tuner chose, where method and budget do not tell trials apart.

    Returns
    -------
    dict of str to str
        Dotted key to heading; empty where trials differ in nothing more, or in more than a table
        has room for.

    Examples
    --------
    >>> telling([TrialRow(str(lr), "succeeded", parameters={"finetune.optimizer.lr": lr, "seed": 0})
    ...          for lr in (0.1, 0.01)])
    {'finetune.optimizer.lr': 'lr'}
    """
    alike: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.metric is None:
            alike.setdefault(repr((row.method, row.budget)), []).append(row)
    keys = [
        key
        for group in alike.values()
        for key in dict.fromkeys(key for row in group for key in row.parameters)
        if len({repr(row.parameters.get(key)) for row in group}) > 1
    ]
    found = {key: key.rpartition(".")[2] for key in dict.fromkeys(keys)}
    if len(found) > _MOST_TELLING:
        return {}
    return found if len(set(found.values())) == len(found) else {key: key for key in found}


def chosen(row: TrialRow, key: str) -> str:
    """Write what the tuner chose for a key, "" for nothing."""
    return _short(row.parameters.get(key, ""))


# Heading, how a row is written, whether it is a number (aligned right).
_Column = tuple[str, Callable[[TrialRow], str], bool]
_COLUMNS: tuple[_Column, ...] = (
    ("method", lambda row: row.method or "", False),
    ("budget", lambda row: format_budget(row.budget), False),
    ("cut %", lambda row: percent(row.accuracy_small), True),
    ("acc. %", lambda row: percent(row.accuracy), True),
    ("metric", lambda row: metric(row.metric), True),
    ("delta", lambda row: points(row.delta), True),
    ("params", lambda row: ratio(row.params_ratio), True),
    ("MACs", lambda row: ratio(row.macs_ratio), True),
    ("latency", latency_text, True),
    ("seconds", lambda row: "" if row.seconds is None else f"{row.seconds:.0f}", True),
    ("status", lambda row: row.status, False),
    ("parameters", _parameters, False),
    ("trial", lambda row: row.trial, False),
)
#: Shown for trials that are none of ours, of which only this is known.
_FOREIGN = {"metric", "parameters"}
_WIDEST = 60
_MOST_TELLING = 2
#: Columns that fit a terminal of 80.
_FIT = 9

_LEGEND = (
    "accuracy: validation images; {cut}delta: points above dense{dense}; params, MACs, latency: "
    "small over dense{interval}; *: Pareto front of accuracy and MACs"
)

_SEEN = (
    "the dense network's training has probably seen the validation images: compare by the test "
    "accuracy (trials.csv, --json)"
)


def legend(rows: Sequence[TrialRow]) -> str:
    """Say what the columns mean, and what the dense network's accuracy is.

    Examples
    --------
    >>> legend([TrialRow("a", "succeeded", accuracy_dense=0.95)])[:52]
    'accuracy: validation images; delta: points above den'
    """
    dense = {f"{100 * row.accuracy_dense:.2f}" for row in rows if row.accuracy_dense is not None}
    ordered = sorted(dense, key=float)
    shown = "" if not dense else f" ({' to '.join(dict.fromkeys((ordered[0], ordered[-1])))} %)"
    cut = "cut: before any fine-tuning; " if _has_cut(rows) else ""
    known = any(row.latency_ratio_low is not None for row in rows)
    interval = ", ± half of the 95 % interval" if known else ""
    metric = "metric: what a trial reported to NNI as its default"
    if _foreign(rows) and all(row.accuracy is None for row in rows):
        return metric
    parts = [_LEGEND.format(dense=shown, cut=cut, interval=interval)]
    parts += [metric] * _foreign(rows) + [_SEEN] * any(row.validation_seen for row in rows)
    return "; ".join(parts)


def _foreign(rows: Sequence[TrialRow]) -> bool:
    return any(row.metric is not None for row in rows)


def _one_method(rows: Sequence[TrialRow]) -> str:
    """Return the method of all trials, "" where there are several or none."""
    methods = {row.method for row in rows}
    return (methods.pop() or "") if len(methods) == 1 else ""


def _has_cut(rows: Sequence[TrialRow]) -> bool:
    return any(row.accuracy_small is not None for row in rows)


def _columns(rows: Sequence[TrialRow], *, narrow: bool = False) -> list[_Column]:
    # The status is news only where something went wrong.
    plain = all(row.status == "succeeded" for row in rows)
    hidden = {"status"} if plain else set()
    if not _has_cut(rows):
        hidden.add("cut %")
    elif narrow:
        hidden.add("seconds")
    if not _foreign(rows):
        hidden |= _FOREIGN
    else:
        hidden |= {heading for heading, write, _ in _COLUMNS if not any(map(write, rows))}
    columns = [column for column in _COLUMNS if column[0] not in hidden]
    place = sum(heading in ("method", "budget") for heading, _, _ in columns)
    columns[place:place] = [
        (heading, partial(chosen, key=key), True) for key, heading in telling(rows).items()
    ]
    if narrow and len(columns) > _FIT and _one_method(rows):
        columns = [column for column in columns if column[0] != "method"]
    if narrow:
        short: _Column = ("latency", _short_latency, True)
        columns = [short if column[0] == "latency" else column for column in columns]
    return columns


def _cells(rows: Sequence[TrialRow], *, narrow: bool = False) -> list[list[str]]:
    best = {row.trial for row in pareto_front(rows)} if len(rows) > 1 else set()
    lines = [[write(row) for _, write, _ in _columns(rows, narrow=narrow)] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        line[-1] += "*" if row.trial in best else ""
    return lines


def rich_table(rows: Sequence[TrialRow], title: str | None = None) -> Table:
    """Return the trials as a table for a :class:`rich.console.Console`.

    Parameters
    ----------
    rows : sequence of TrialRow
        One line each, in this order. Accuracies are shown in percent, ratios as small over dense.
    title : str, optional
        Heading.

    Returns
    -------
    rich.table.Table
        Trials on the Pareto front of accuracy and MACs are bold and carry a ``*``. The status is
        shown where one of them has not succeeded; where the accuracy before fine-tuning is known
        it takes the place of the seconds.

    Examples
    --------
    >>> rich_table([TrialRow("a", "succeeded", accuracy=0.9)]).row_count
    1
    """
    from rich import box
    from rich.text import Text

    from nni_gconv.display import Table

    columns = _columns(rows, narrow=True)
    named = any(heading == "method" for heading, _, _ in columns) or not _one_method(rows)
    caption = legend(rows) if named else f"method: {_one_method(rows)}; {legend(rows)}"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading, _, number in columns:
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row, cells in zip(rows, _cells(rows, narrow=True), strict=True):
        style = "red" if row.status in ("failed", "killed", "unreadable") else None
        style = "bold" if cells[-1].endswith("*") else style
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def plain_table(rows: Sequence[TrialRow]) -> str:
    """Return the trials as text in aligned columns, without colour, of any width.

    Examples
    --------
    >>> print(plain_table([TrialRow("a", "failed", method="fpgm")]).splitlines()[1].split())
    ['fpgm', 'failed', 'a']
    """
    columns = _columns(rows)
    headings = [heading for heading, _, _ in columns]
    lines = [headings, *_cells(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    text = []
    for line in lines:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, (_, _, number) in zip(line, widths, columns, strict=True)
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join([*text, legend(rows)])


def state_lines(rows: Sequence[TrialRow]) -> list[str]:
    """Say how many trials are in which state, then how far the unfinished are and what went wrong.

    Examples
    --------
    >>> state_lines([TrialRow("a", "succeeded"), TrialRow("b", "failed", error="no space left")])
    ['2 trials: 1 succeeded, 1 failed', 'b failed: no space left']
    """
    counts = Counter(row.status for row in rows)
    states = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    lines = [f"{len(rows)} {'trial' if len(rows) == 1 else 'trials'}: {states}"] if rows else []
    for row in rows:
        said = " ".join((row.error or row.progress or "").split())
        if said and row.status != "succeeded":
            lines.append(f"{row.trial} {row.status}: {said}")
    return lines


def json_rows(rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Return one mapping a trial with all fields of :class:`TrialRow`, ready for ``json.dumps``.

    Accuracies are fractions of 1 and ratios are small over dense; unknown is None.

    Examples
    --------
    >>> json_rows([TrialRow("a", "succeeded", accuracy=0.9)])[0]["accuracy"]
    0.9
    """
    return [row.to_dict() for row in rows]


def write_csv(rows: Sequence[TrialRow], path: str | Path) -> Path:
    """Write the trials to a CSV file, replacing it in one step.

    Parameters
    ----------
    rows : sequence of TrialRow
        One line each under a line of headings; the tuner's choices stand in columns
        ``parameters.<key>``. Numbers are unrounded, what is not known is empty.
    path : str or Path
        File to write; its folder is made.

    Returns
    -------
    Path
        The file.
    """
    keys = sorted({key for row in rows for key in row.parameters})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_FIELDS, *(f"parameters.{key}" for key in keys)])
    for row in rows:
        fields = [getattr(row, name) for name in _CSV_FIELDS]
        fields[_CSV_FIELDS.index("budget")] = format_budget(row.budget)
        writer.writerow([*fields, *(row.parameters.get(key) for key in keys)])
    with output_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return Path(path).expanduser()
