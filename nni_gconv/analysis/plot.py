"""The picture of a sensitivity analysis: accuracy and loss against the share of channels gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nni_gconv.analysis.curves import Curve, Score
from nni_gconv.errors import ConfigError
from nni_gconv.figure import picture, picture_path

#: More sets than this have a scale of colours in place of a legend.
_NAMED = 20


def plot_curves(
    curves: Sequence[Curve],
    dense: Score,
    path: str | Path,
    *,
    tolerance: float,
    title: str,
) -> Path:
    """Draw one line for each coupled set, first layers dark, last ones bright.

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

        left, right = figure.subplots(1, 2)
        # The brightest yellow of the map cannot be seen on white.
        shades, last = colormaps["viridis"], 1.1 * max(1, len(curves) - 1)
        for number, curve in enumerate(curves):
            look = {"color": shades(number / last), "linewidth": 1.2}
            ratios = [point.ratio for point in curve.points]
            accuracies = [100 * point.accuracy for point in curve.points]
            left.plot(ratios, accuracies, label=curve.name, **look)
            reached = curve.ratio(dense.accuracy, tolerance)
            if reached > 0:
                left.plot(reached, accuracies[ratios.index(reached)], "o", ms=4, **look)
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
            figure.legend(loc="outside right center", fontsize="x-small", frameon=False)
        else:
            scale = ScalarMappable(Normalize(0, last), shades)
            bar = figure.colorbar(scale, ax=right, label="coupled set, in the order of the model")
            bar.ax.set_ylim(0, len(curves) - 1)
        figure.suptitle(title)
    return path
