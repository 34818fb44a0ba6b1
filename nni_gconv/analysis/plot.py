"""The picture of a sensitivity analysis: accuracy and loss against the share of channels gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gconv.analysis.curves import Curve, Score
from nni_gconv.display import picture, picture_path
from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: More sets than this have a scale of colours in place of their names.
_NAMED = 20


def plot_curves(
    curves: Sequence[Curve],
    dense: Score,
    path: str | Path,
    *,
    tolerance: float,
    title: str,
) -> Path:
    """Draw one line for each coupled set, first layers dark, last ones bright, streams thick.

    Parameters
    ----------
    curves : sequence of Curve
        In the order of the model.
    dense : Score
        With nothing removed.
    path : str or Path
        ``.png``, ``.svg`` or ``.pdf``; replaced in one step, its folder is made.
    tolerance : float
        A dot marks the ratio that each curve allows for it.
    title : str
        Heading.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        There is no curve, or the file's format is unknown.
    """
    path = picture_path(path)
    if not curves:
        raise ConfigError("nothing to plot: no curve")
    with picture(path, 10.0, 4.5) as figure:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.ticker import MaxNLocator

        left, right = figure.subplots(1, 2)
        # The brightest yellow of the map cannot be seen on white.
        shades, last = colormaps["viridis"], 1.1 * max(1, len(curves) - 1)
        ends = []
        for number, curve in enumerate(curves):
            # A stream of several layers is a thick line, an inner layer a thin one.
            look = {"color": shades(number / last), "linewidth": 2.4 if _shared(curve) else 1.0}
            ratios = [point.ratio for point in curve.points]
            accuracies = [100 * point.accuracy for point in curve.points]
            left.plot(ratios, accuracies, **look)
            ends.append((curve.name, accuracies[-1], look["color"]))
            reached = curve.ratio(dense.accuracy, tolerance)
            if reached > 0:
                left.plot(reached, accuracies[ratios.index(reached)], "o", ms=5, **look)
            right.plot(
                ratios, [p.loss if math.isfinite(p.loss) else None for p in curve.points], **look
            )
        left.axhline(100 * dense.accuracy, color="black", linestyle="--", linewidth=0.8)
        left.set_ylabel("accuracy (%)")
        right.set_ylabel("loss")
        right.set_yscale("log")
        for axes in (left, right):
            axes.set_xlabel("share of the set's channels removed")
            axes.grid(visible=True, color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        if len(curves) <= _NAMED:
            _name_ends(left, ends)
        else:
            scale = ScalarMappable(Normalize(0, last), shades)
            bar = figure.colorbar(scale, ax=right, label="coupled set, in the order of the model")
            bar.ax.set_ylim(0, len(curves) - 1)
            bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        _explain(figure, tolerance, any(map(_shared, curves)))
        figure.suptitle(title)
    return path


def _shared(curve: Curve) -> bool:
    """Tell a set that several layers make from one of a single layer."""
    return len(curve.layers) > 1


def _name_ends(axes: Axes, ends: Sequence[tuple[str, float, Any]]) -> None:
    """Write each line's name where it ends, moved apart where lines end together."""
    low, high = axes.get_ylim()
    apart = (high - low) * 0.045
    where = high + apart
    link = {"arrowstyle": "-", "color": "0.8", "lw": 0.6, "relpos": (0, 0.5)}
    for name, value, colour in sorted(ends, key=lambda end: -end[1]):
        where = min(value, where - apart)
        axes.annotate(
            name, (1.0, value), xycoords=("axes fraction", "data"), xytext=(1.03, where),
            textcoords=("axes fraction", "data"), color=colour, fontsize="x-small", va="center",
            annotation_clip=False, arrowprops=link,
        )  # fmt: skip
    axes.set_ylim(min(low, where - apart), high)


def _explain(figure: Figure, tolerance: float, streams: bool) -> None:
    """Say below the picture what marks and lines mean."""
    from matplotlib.lines import Line2D

    within = f"most channels gone with less than {100 * tolerance:g} % lost"
    shown = [
        Line2D([], [], color="black", linestyle="--", linewidth=0.8, label="dense"),
        Line2D([], [], color="0.4", marker="o", ms=5, linestyle="", label=within),
    ]
    if streams:
        thick = Line2D([], [], color="0.4", linewidth=2.4, label="channels of several layers")
        thin = Line2D([], [], color="0.4", linewidth=1.0, label="of one layer")
        shown += [thick, thin]
    figure.legend(
        handles=shown, loc="outside lower center", ncols=4, fontsize="x-small", frameon=False
    )
