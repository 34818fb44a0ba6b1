"""A partition as an array of pixels: quick, for a picture of every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nni_gconv.groupconv.partition.result import Partition

_FRAME = (213, 94, 0)


def block_pixels(scores: ArrayLike, part: Partition, *, pixels: int = 256) -> NDArray[np.uint8]:
    """Paint scores as they are stored and, to the right of that, with groups side by side.

    Parameters
    ----------
    scores : array_like, shape (F, C)
        Non-negative.
    part : Partition
        Of the same shape.
    pixels : int, default 256
        About so many on the longer side of each half; larger matrices are reduced by maxima.

    Returns
    -------
    ndarray of uint8, shape (3, H, W)
        Red, green and blue; the groups on the right are framed.

    Examples
    --------
    >>> from nni_gconv.groupconv.partition import partition
    >>> scores = np.kron(np.eye(2), np.ones((4, 4)))[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    >>> block_pixels(scores, partition(scores, 2), pixels=64).shape
    (3, 66, 140)
    """
    from matplotlib import colormaps

    matrix = np.asarray(scores, np.float64)
    # A few outliers would leave the rest of the picture dark.
    top = float(np.quantile(matrix, 0.995)) or float(matrix.max()) or 1.0
    scale = max(1, pixels // max(matrix.shape))
    ordered = matrix[np.argsort(part.row_groups, kind="stable")][:, part.in_index]
    halves = []
    for values in (matrix, ordered):
        small = np.clip(_reduced(values, pixels) / top, 0, 1)
        painted = (colormaps["viridis"](small)[..., :3] * 255).astype(np.uint8)
        broad = painted.repeat(scale, axis=0).repeat(scale, axis=1)
        halves.append(np.pad(broad, ((1, 1), (1, 1), (0, 0)), constant_values=255))
    _frame(halves[1], part.num_groups)
    gap = np.full((halves[0].shape[0], max(2, halves[0].shape[1] // 8), 3), 255, np.uint8)
    return np.concatenate([halves[0], gap, halves[1]], axis=1).transpose(2, 0, 1)


def _reduced(values: NDArray[np.float64], pixels: int) -> NDArray[np.float64]:
    """Take maxima over cells so that neither side is longer than `pixels`."""
    for axis in (0, 1):
        length = values.shape[axis]
        if length > pixels:
            starts = np.arange(pixels) * length // pixels
            values = np.maximum.reduceat(values, starts, axis=axis)
    return values


def _frame(image: NDArray[np.uint8], groups: int) -> None:
    """Draw a frame around each block on the diagonal, in place."""
    rows = np.linspace(0, image.shape[0] - 1, groups + 1).round().astype(int)
    columns = np.linspace(0, image.shape[1] - 1, groups + 1).round().astype(int)
    for g in range(groups):
        top, bottom, left, right = rows[g], rows[g + 1], columns[g], columns[g + 1]
        image[[top, bottom], left : right + 1] = _FRAME
        image[top : bottom + 1, [left, right]] = _FRAME
