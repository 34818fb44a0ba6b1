"""The picture of an experiment: accuracy against cost, with the dense network and the front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nni_gconv.display import COLOURS, picture, picture_path
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.report.collect import TrialRow, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Beside the colours: markers say the same again.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COSTS = {
    "macs_ratio": "MACs (small / dense)",
    "params_ratio": "parameters (small / dense)",
    "latency_ratio": "latency (small / dense)",
}


def plot_trials(
    rows: Sequence[TrialRow],
    path: str | Path,
    *,
    cost: str = "macs_ratio",
    title: str | None = None,
    legend: bool = True,
) -> Path:
    """Draw validation accuracy against cost, one colour and marker per method.

    Parameters
    ----------
    rows : sequence of TrialRow
        Rows without an accuracy or the cost are left out.
    path : str or Path
        ``.png``, ``.svg`` or ``.pdf``; replaced in one step, its folder is made.
    cost : {"macs_ratio", "params_ratio", "latency_ratio"}, default "macs_ratio"
        Horizontal axis.
    title : str, optional
        Heading of the picture.
    legend : bool, default True
        Whether it says which method has which colour; one of several on a page is enough.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        No row can be drawn, or the file's format or the cost is unknown.

    Examples
    --------
    >>> row = TrialRow("a", "succeeded", method="fpgm", accuracy=0.9, macs_ratio=0.5)
    >>> plot_trials([row], "runs/plot.png")  # doctest: +SKIP
    PosixPath('runs/plot.png')
    """
    path = picture_path(path)
    if cost not in _COSTS:
        raise ConfigError(unknown_name("cost", cost, _COSTS))
    usable = [row for row in rows if row.accuracy is not None and getattr(row, cost) is not None]
    if not usable:
        raise ConfigError(f"nothing to plot: no trial has both an accuracy and a {cost}")
    with picture(path, 7.0, 4.5) as figure:
        axes = figure.add_subplot()
        _draw_dense(axes, usable)
        _draw_intervals(axes, usable, cost)
        _draw_methods(axes, usable, cost)
        _draw_front(axes, pareto_front(usable, cost), cost)
        axes.set_xlabel(_COSTS[cost])
        axes.set_ylabel("validation accuracy (%)")
        axes.grid(visible=True, color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.08, 0.12)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))  # there is no accuracy above
        if title:
            axes.set_title(title)
        if legend:
            axes.legend(framealpha=0.9, edgecolor="0.8", fontsize="small", labelspacing=0.8)
    return path


def _draw_dense(axes: Axes, rows: Sequence[TrialRow]) -> None:
    """Draw a line at the dense accuracy, a band where the trials' own baselines differ."""
    dense = [100 * row.accuracy_dense for row in rows if row.accuracy_dense is not None]
    if not dense:
        return
    low, high = min(dense), max(dense)
    if high - low < 1e-6:
        axes.axhline(high, color="black", linestyle="--", linewidth=1.2, label=f"dense {high:.2f}")
    else:
        label = f"dense {low:.2f} to {high:.2f}"
        axes.axhspan(low, high, color="black", alpha=0.12, linewidth=0, label=label)


def _draw_intervals(axes: Axes, rows: Sequence[TrialRow], cost: str) -> None:
    """Draw a bar as long as the interval of each cost that was measured."""
    for row in rows:
        low, high = row.interval(cost)
        if high > low:
            height = 100 * (row.accuracy or 0.0)
            value = getattr(row, cost)
            axes.errorbar(
                value, height, xerr=[[value - low], [high - value]], fmt="none", ecolor="0.45",
                elinewidth=1.0, capsize=2.5, zorder=2.5,
            )  # fmt: skip


def _draw_methods(axes: Axes, rows: Sequence[TrialRow], cost: str) -> None:
    methods = sorted({row.method or "unknown" for row in rows})
    drawn = sorted(rows, key=lambda row: methods.index(row.method or "unknown"))
    sizes = dict(zip(map(id, drawn), _sizes(_places(drawn, cost)), strict=True))
    for i, method in enumerate(methods):
        points = [row for row in drawn if (row.method or "unknown") == method]
        axes.scatter(
            [getattr(row, cost) for row in points],
            [100 * (row.accuracy or 0.0) for row in points],
            s=[sizes[id(row)] for row in points],
            color=COLOURS[i % len(COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            edgecolor="white",
            linewidth=0.6,
            label=method,
            zorder=3,
        )


def _places(rows: Sequence[TrialRow], cost: str) -> np.ndarray:
    """Return where the points are, as shares of the picture's width and height."""
    places = np.array([[getattr(row, cost), row.accuracy] for row in rows], dtype=float)
    span = np.ptp(places, axis=0)
    return places / np.where(span > 0, span, 1.0)


def _sizes(places: np.ndarray) -> list[float]:
    """Give a point a larger area for each one that is drawn on it, so that its rim can be seen."""
    covering = [
        int((np.abs(places[i + 1 :] - place) < 0.015).all(axis=1).sum())
        for i, place in enumerate(places)
    ]
    return [60.0 * 1.7 ** min(count, 4) for count in covering]


def _draw_front(axes: Axes, front: Sequence[TrialRow], cost: str) -> None:
    x = [getattr(row, cost) for row in front]
    y = [100 * (row.accuracy or 0.0) for row in front]
    # Steps and no slopes: between two networks nothing has been measured.
    axes.step(x, y, where="post", color="0.45", linewidth=1.0, zorder=2)
    axes.scatter(
        x, y, s=190, facecolor="none", edgecolor="0.35", linewidth=1.0, label="Pareto front"
    )
