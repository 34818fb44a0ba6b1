"""Scores of filters: pure functions of tensors, no model, no NNI.

All take filters as a matrix, one row a filter flattened, and return one score a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Distance = Literal["l1", "l2", "cosine"]
DISTANCES: tuple[Distance, ...] = ("l1", "l2", "cosine")

#: Coordinates handled at once in :func:`_l1_sums`; bounds its memory.
_L1_COLUMNS = 2048


def count(size: int, ratio: float) -> int:
    """Return how many of `size` a ratio means: round half to even, free of representation error.

    Examples
    --------
    >>> count(10, 0.1), count(20, 1 - 0.8), count(64, 0.1)
    (1, 4, 6)
    """
    return round(round(size * ratio, 9))


def filter_norms(filters: Tensor, p: float = 2) -> Tensor:
    """Norm of each filter.

    Parameters
    ----------
    filters : Tensor, shape (F, d)
        One filter a row.
    p : float, default 2
        Order of the norm.

    Returns
    -------
    Tensor of float64, shape (F,)

    Examples
    --------
    >>> filter_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [5.0, 1.0]
    """
    return torch.linalg.vector_norm(filters.to(torch.float64), ord=p, dim=1)


def distance_sums(filters: Tensor, distance: Distance = "l2") -> Tensor:
    """Sum of distances from each filter to all others.

    The filter with the smallest sum is the discrete geometric median: the most replaceable one.

    Parameters
    ----------
    filters : Tensor, shape (F, d)
        One filter a row.
    distance : {"l2", "l1", "cosine"}
        Euclidean, city-block, or one minus the cosine of the angle. A filter that is all zero has
        cosine distance 1 to every other and 0 to itself.

    Returns
    -------
    Tensor of float64, shape (F,)
        Rounded no further, so that filters that hardly differ keep their order.

    References
    ----------
    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019.

    Examples
    --------
    >>> distance_sums(torch.tensor([[0.0], [1.0], [3.0]]), "l1").tolist()
    [4.0, 3.0, 5.0]
    """
    filters = filters.to(torch.float64)
    if distance == "l2":
        return _l2_sums(filters)
    if distance == "l1":
        return sum(
            (_l1_sums(part) for part in filters.split(_L1_COLUMNS, dim=1)), filters.new_zeros(())
        )
    if distance == "cosine":
        unit = torch.nn.functional.normalize(filters, dim=1)
        # sum_i (1 - <u_i, u_j>) = F - <sum_i u_i, u_j>; a zero filter is at 0 from itself.
        sums = filters.shape[0] - unit @ unit.sum(0)
        return sums - (unit.abs().sum(1) == 0).to(sums.dtype)
    raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")


def _l2_sums(filters: Tensor) -> Tensor:
    """Pairwise Euclidean distances by one matrix product, centred so that nothing cancels."""
    centred = filters - filters.mean(0)
    square = (centred * centred).sum(1)
    products = centred @ centred.T
    squared = square[:, None] + square[None, :] - 2 * products
    # What remains of a difference of equals is rounding: below it two filters are the same.
    floor = 1e-13 * (square[:, None] + square[None, :])
    squared = torch.where(squared > floor, squared, 0.0)
    squared.fill_diagonal_(0.0)
    return squared.sqrt_().sum(1)


def _l1_sums(filters: Tensor) -> Tensor:
    """City-block distances coordinate by coordinate: in sorted order the sums are prefix sums."""
    values, order = filters.sort(dim=0)
    size = len(values)
    rank = torch.arange(size, dtype=torch.float64, device=values.device)[:, None]
    prefix = values.cumsum(0)
    below = (rank + 1) * values - prefix
    above = prefix[-1:] - prefix - (size - 1 - rank) * values
    return torch.empty_like(values).scatter_(0, order, below + above).sum(1)


def geometric_median_order(norms: Tensor, sums_among: Tensor, small: Tensor) -> Tensor:
    """Order filters for removal: the `small` ones by norm first, then the most replaceable.

    Parameters
    ----------
    norms : Tensor, shape (F,)
        Norm of each filter.
    sums_among : Tensor, shape (F,)
        Distance sums among the filters that are not small; ignored at small ones.
    small : bool Tensor, shape (F,)
        Filters that the norm criterion takes.

    Returns
    -------
    Tensor, shape (F,)
        Scores: negative for small filters, so that ascending order is the order of removal.
    """
    return torch.where(small, norms - norms.max() - 1, sums_among)
