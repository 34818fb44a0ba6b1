"""The picture of a partition: kernel scores as they are stored, and with groups side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nni_gconv.display import COLOURS, picture, picture_path
from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nni_gconv.groupconv.partition import Partition


def plot_blocks(
    layers: Mapping[str, tuple[Any, Partition]], path: str | Path, *, title: str | None = None
) -> Path:
    """Draw each layer's kernel scores twice: before and after the permutation into groups.

    Parameters
    ----------
    layers : mapping of str to (scores, Partition)
        Name -> scores, an array or tensor of shape (F, C), and how they were split.
    path : str or Path
        ``.png``, ``.svg`` or ``.pdf``; replaced in one step, its folder is made.
    title : str, optional
        Heading of the picture.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        No layer, scores that are not those of the partition, or an unknown format.

    Examples
    --------
    >>> from nni_gconv import partition
    >>> scores = np.random.default_rng(0).random((8, 8))
    >>> plot_blocks({"conv": (scores, partition(scores, 2))}, "blocks.png")  # doctest: +SKIP
    PosixPath('blocks.png')
    """
    path = picture_path(path)
    if not layers:
        raise ConfigError("nothing to plot: no layer")
    matrices = {name: _matrix(name, *pair) for name, pair in layers.items()}
    with picture(path, 3.2 * len(layers), 6.4) as figure:
        grid = figure.subplots(2, len(layers), squeeze=False)
        for (name, matrix), column in zip(matrices.items(), grid.T, strict=True):
            _draw(column, name, matrix, layers[name][1])
        grid[0, 0].set_ylabel("as stored: filters by input channels")
        grid[1, 0].set_ylabel("groups side by side")
        if title:
            figure.suptitle(title)
    return path


def _matrix(name: str, scores: Any, part: Partition) -> NDArray[np.float64]:
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu()
    matrix = np.asarray(scores, np.float64)
    expected = (len(part.row_groups), len(part.col_groups))
    if matrix.shape != expected:
        raise ConfigError(f"{name}: scores of shape {matrix.shape}, but a partition of {expected}")
    return matrix


def _draw(pair: Sequence[Axes], name: str, matrix: NDArray[np.float64], part: Partition) -> None:
    """Draw the scores as they are above, permuted below, the groups framed."""
    from matplotlib.patches import Rectangle

    ordered = matrix[np.argsort(part.row_groups, kind="stable")][:, part.in_index]
    # A few outliers would leave the rest of the picture dark.
    top = float(np.quantile(matrix, 0.995)) or 1.0
    for axes, values in zip(pair, (matrix, ordered), strict=True):
        axes.imshow(values, cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
    filters, channels = matrix.shape
    groups = part.num_groups
    height, width = filters / groups, channels / groups
    for g in range(groups):
        corner = (g * width - 0.5, g * height - 0.5)
        frame = Rectangle(corner, width, height, fill=False, edgecolor=COLOURS[1], clip_on=False)
        pair[1].add_patch(frame)
    pair[0].set_title(f"{name}, {filters}x{channels}", fontsize="medium")
    kept = f"{groups} groups keep {part.fraction:.1%}, chance {1 / groups:.1%}"
    pair[1].set_title(kept, fontsize="medium")
