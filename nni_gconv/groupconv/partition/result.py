"""What a partition is, and what can be read off it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Rows (filters) and columns (input channels) of a layer, split in the same G groups.

    Attributes
    ----------
    row_groups : ndarray of int64, shape (F,)
        Group of each filter, 0 .. G-1; groups are numbered by their smallest column.
    col_groups : ndarray of int64, shape (C,)
        Group of each input channel.
    retained : float
        Sum of the scores whose filter and channel share a group.
    bound : float
        Proven upper bound: no partition in G balanced groups retains more.
    total : float
        Sum of all scores.

    Examples
    --------
    >>> p = Partition([1, 0, 1, 0], [0, 1, 0, 1], retained=6.0, bound=7.0, total=8.0)
    >>> p.num_groups, p.fraction, p.in_index.tolist(), p.out_index.tolist()
    (2, 0.75, [0, 2, 1, 3], [2, 0, 3, 1])
    """

    row_groups: Ints
    col_groups: Ints
    retained: float
    bound: float = math.inf
    total: float = math.nan

    def __post_init__(self) -> None:
        for name in ("row_groups", "col_groups"):
            groups = np.array(getattr(self, name), np.int64)
            groups.setflags(write=False)
            object.__setattr__(self, name, groups)

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return int(self.col_groups.max()) + 1

    @property
    def lost(self) -> float:
        """Sum of the scores outside the groups."""
        return self.total - self.retained

    @property
    def fraction(self) -> float:
        """Share of all score that is retained, 0 to 1; 1 if there is no score to lose."""
        return 1.0 if self.total == 0 else self.retained / self.total

    @property
    def optimal(self) -> bool:
        """Whether the bound proves that no partition retains more (to a billionth)."""
        return self.bound <= self.retained * (1 + 1e-9)

    @property
    def in_index(self) -> Ints:
        """Input gather, shape (C,): position in the grouped convolution -> input channel.

        Groups one after the other, channels ascending inside each.
        """
        return np.argsort(self.col_groups, kind="stable")

    @property
    def out_index(self) -> Ints:
        """Output gather, shape (F,): filter -> its position in the grouped convolution's output."""
        order = np.argsort(self.row_groups, kind="stable")
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        return position

    def mask(self) -> NDArray[np.bool_]:
        """Block mask, shape (F, C): True where filter and channel share a group."""
        return self.row_groups[:, None] == self.col_groups[None, :]


def numbered_by_column(row_groups: ArrayLike, col_groups: ArrayLike) -> tuple[Ints, Ints]:
    """Renumber groups 0, 1, ... by the smallest column in each.

    Examples
    --------
    >>> rows, cols = numbered_by_column([0, 1], [1, 0])
    >>> rows.tolist(), cols.tolist()
    ([1, 0], [0, 1])
    """
    rows, cols = np.asarray(row_groups, np.int64), np.asarray(col_groups, np.int64)
    groups, first = np.unique(cols, return_index=True)
    number = np.empty(len(groups), np.int64)
    number[groups[np.argsort(first)]] = np.arange(len(groups))
    return number[rows], number[cols]
