"""The report as one HTML file that opens anywhere: nothing is fetched, from nowhere."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nni_gconv._version import __version__
from nni_gconv.errors import NniGconvError
from nni_gconv.experiment import epochs_of
from nni_gconv.files import output_file
from nni_gconv.report.collect import TrialRow, pareto_front, trial_log
from nni_gconv.report.layers import Network, read_network
from nni_gconv.report.plot import plot_trials
from nni_gconv.report.table import (
    chosen,
    format_budget,
    latency_text,
    legend,
    metric,
    percent,
    points,
    ratio,
    state_lines,
    telling,
)

_COSTS = ("macs_ratio", "params_ratio", "latency_ratio")
_BAD = ("failed", "killed", "unreadable")
_LOG_LINES = 25


def _count(value: float | None) -> str:
    """Write a count in three digits, as the table has room for it; "" for none."""
    if value is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            shown = value / size
            return f"{shown:.{2 if shown < 9.995 else 1 if shown < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


# Heading, field of a row, how it is written.
_Number = tuple[str, str, Callable[[Any], str]]
_NUMBERS: tuple[_Number, ...] = (
    ("metric", "metric", metric),
    ("accuracy %", "accuracy", percent),
    ("delta", "delta", points),
    ("dense %", "accuracy_dense", percent),
    ("masked %", "accuracy_masked", percent),
    ("cut %", "accuracy_small", percent),
    ("top-5 %", "top5", percent),
    ("test %", "test_accuracy", percent),
    ("params", "params", _count),
    ("params ratio", "params_ratio", ratio),
    ("MACs", "macs", _count),
    ("MACs ratio", "macs_ratio", ratio),
    ("latency ms", "latency_ms", ratio),
    ("latency ratio", "latency_ratio", ratio),
    ("seconds", "seconds", _count),
)


def write_html(rows: Sequence[TrialRow], path: str | Path, *, title: str = "nni-gconv") -> Path:
    """Write a table that sorts, pictures, each network's layers and what went wrong.

    Parameters
    ----------
    rows : sequence of TrialRow
        Of :func:`nni_gconv.report.collect`; their folders are read for layers, epochs and logs.
    path : str or Path
        ``.html``; replaced in one step, its folder is made.
    title : str, default "nni-gconv"
        Heading.

    Returns
    -------
    Path
        The file. All that a trial wrote is shown as text, whatever it contains.

    Raises
    ------
    ConfigError
        The file cannot be written.

    Examples
    --------
    >>> write_html(collect("~/nni-experiments/_latest"), "report.html")  # doctest: +SKIP
    PosixPath('report.html')
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nni_gconv.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    front = {id(row) for row in pareto_front(rows)} if len(rows) > 1 else set()
    choices, numbers = telling(rows), _numbers(rows)
    text = environment.get_template("report.html.j2").render(
        title=title,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        percent=percent,
        ratio=ratio,
        states=state_lines(rows)[:1],
        legend=legend(rows),
        states_differ=any(row.status != "succeeded" for row in rows),
        methods=any(row.method for row in rows),
        budgets=any(row.budget for row in rows),
        headings=[*choices.values(), *(heading for heading, _, _ in numbers)],
        pictures=_pictures(rows),
        trials=[_trial(row, id(row) in front, choices, numbers) for row in rows],
    )
    with output_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path).expanduser()


def _numbers(rows: Sequence[TrialRow]) -> list[_Number]:
    """Return the columns that say something: of a dense accuracy of all the legend tells."""
    dense = {row.accuracy_dense for row in rows if row.accuracy_dense is not None}
    return [
        number
        for number in _NUMBERS
        if any(getattr(row, number[1]) is not None for row in rows)
        and (number[1] != "accuracy_dense" or len(dense) > 1)
    ]


def _pictures(rows: Sequence[TrialRow]) -> list[dict[str, str]]:
    """Draw accuracy against each cost that was measured, as data of the page itself.

    The first picture's legend is that of all.
    """
    made: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for cost in _COSTS:
            if any(r.accuracy is not None and getattr(r, cost) is not None for r in rows):
                file = Path(folder) / f"{cost}.svg"
                plot_trials(rows, file, cost=cost, legend=not made)
                data = base64.b64encode(file.read_bytes()).decode("ascii")
                made.append({"cost": cost, "data": f"data:image/svg+xml;base64,{data}"})
    return made


def _trial(
    row: TrialRow, on_front: bool, choices: Mapping[str, str], numbers: Sequence[_Number]
) -> dict[str, Any]:
    folder = Path(row.folder) if row.folder is not None else None
    bad = row.status in _BAD
    return {
        "row": row,
        "front": on_front,
        "bad": bad,
        "budget": format_budget(row.budget),
        "chosen": "".join(f", {head} {chosen(row, key)}" for key, head in choices.items()),
        "numbers": [
            *(_choice(row, key) for key in choices),
            *(_cell(row, field, write) for _, field, write in numbers),
        ],
        "log": trial_log(folder, _LOG_LINES) if bad and folder is not None else "",
        "layers": _layers(folder),
        "curve": _curve(epochs_of(folder)) if folder is not None else None,
    }


def _choice(row: TrialRow, key: str) -> dict[str, Any]:
    return {"value": row.parameters.get(key), "shown": chosen(row, key), "exact": ""}


def _cell(row: TrialRow, field: str, write: Callable[[Any], str]) -> dict[str, Any]:
    value = getattr(row, field)
    shown = latency_text(row) if field == "latency_ratio" else write(value)
    exact = f"{value:,.0f}" if write is _count and value is not None else ""
    return {"value": value, "shown": shown, "exact": exact if exact != shown else ""}


def _layers(folder: Path | None) -> list[dict[str, Any]]:
    """Return a line for each layer that has a width; none where the file is missing or damaged."""
    try:
        network = read_network(folder) if folder is not None else None
    except NniGconvError:
        return []
    return _layer_lines(network) if network is not None else []


def _layer_lines(network: Network) -> list[dict[str, Any]]:
    known = [layer for layer in network.layers.values() if layer.outputs is not None]
    widest = max(
        [layer.outputs or 0 for layer in [*known, *network.dense.values()]], default=0
    )  # fmt: skip
    lines = []
    for layer in known:
        before = network.dense.get(layer.name)
        lines.append(
            {
                "name": layer.name,
                "type": layer.type,
                "before": before.widths() if before is not None else "",
                "after": layer.widths(),
                "groups": layer.groups,
                "broad": 100 * ((before and before.outputs) or 0) / widest if widest else 0,
                "narrow": 100 * (layer.outputs or 0) / widest if widest else 0,
                "params": layer.params / before.params if before and before.params else None,
                "macs": layer.macs / before.macs
                if layer.macs is not None and before is not None and before.macs
                else None,
            }
        )
    return lines


def _curve(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the validation accuracy of every epoch as points of a drawing of 600 by 120."""
    epochs = [r for r in records if isinstance(r.get("val_accuracy"), int | float)]
    if len(epochs) < 2:
        return None
    values = [float(record["val_accuracy"]) for record in epochs]
    low, high = min(values), max(values)
    # What does not change is a line in the middle.
    low_at, span = (low, high - low) if high > low else (low - 0.5, 1.0)
    x = [600 * i / (len(epochs) - 1) for i in range(len(epochs))]
    y = [115 - 110 * (value - low_at) / span for value in values]
    stages: list[dict[str, Any]] = []
    for i, record in enumerate(epochs):
        if not stages or stages[-1]["name"] != str(record["stage"]):
            stages.append({"name": str(record["stage"]), "x": round(x[i], 1), "points": ""})
        stages[-1]["points"] += f"{x[i]:.1f},{y[i]:.1f} "
    return {"stages": stages, "low": low, "high": high, "count": len(epochs)}
