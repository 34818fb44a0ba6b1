"""The optimum of small problems: every balanced set of row groups, best columns for each.

There are ``F! / ((F/G)!^G G!)`` ways to split rows into unnumbered groups. For each the columns
are a balanced assignment, bounded by every column's best group without counting places. Splits
are taken in the order of that bound, and the first whose bound is no better than the best found
ends the search.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nni_gconv.groupconv.partition.assignment import balanced_assignment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_SPLITS = 50_000
_MOST_NUMBERS = 10_000_000


def count_splits(items: int, num_groups: int) -> int:
    """Ways to split `items` into `num_groups` unnumbered groups of one size.

    Examples
    --------
    >>> count_splits(8, 2), count_splits(8, 4), count_splits(12, 3)
    (35, 105, 5775)
    """
    size = items // num_groups
    ways = math.factorial(items) // math.factorial(size) ** num_groups
    return ways // math.factorial(num_groups)


@lru_cache(8)
def balanced_splits(items: int, num_groups: int) -> Ints:
    """All splits as members: (splits, G, items/G), groups ordered by their first member.

    To be read alone: layers of one shape share them.
    """
    size = items // num_groups
    left = np.arange(items)[None, :]
    members = np.zeros((1, 0, size), np.int64)
    while left.shape[1]:
        rest = left.shape[1]
        # The first item left opens the next group, so that no split is met twice.
        chosen = [(0, *others) for others in combinations(range(1, rest), size - 1)]
        picked = np.array(chosen, np.int64)
        free = np.ones((len(chosen), rest), bool)
        np.put_along_axis(free, picked, False, axis=1)
        other = np.nonzero(free)[1].reshape(len(chosen), rest - size)
        group = left[:, picked].reshape(-1, 1, size)
        members = np.concatenate([np.repeat(members, len(chosen), axis=0), group], axis=1)
        left = left[:, other].reshape(len(left) * len(chosen), rest - size)
    members.flags.writeable = False
    return members


def solve_exactly(scores: Floats, num_groups: int) -> tuple[Ints, Ints] | None:
    """Optimal row and column groups, or None where enumerating is too long.

    Parameters
    ----------
    scores : ndarray of float64, shape (F, C)
        Non-negative scores; G divides F and C.
    num_groups : int
        G.

    Returns
    -------
    (row_groups, col_groups) or None
        None if both sides have more than 50 000 splits, or too large a table of them.
    """
    rows, cols = scores.shape
    if count_splits(cols, num_groups) < count_splits(rows, num_groups):
        swapped = solve_exactly(scores.T, num_groups)
        return None if swapped is None else (swapped[1], swapped[0])
    splits = count_splits(rows, num_groups)
    if splits > _MOST_SPLITS or splits * scores.size > _MOST_NUMBERS:
        return None
    members = balanced_splits(rows, num_groups)
    profit = scores[members].sum(axis=2)  # (splits, G, C)
    bounds = profit.max(axis=1).sum(axis=1)
    best, chosen, col_groups = -np.inf, 0, np.zeros(cols, np.int64)
    for index in np.argsort(-bounds, kind="stable"):
        if bounds[index] <= best:
            break
        candidate = balanced_assignment(profit[index].T)
        mass = float(profit[index][candidate, np.arange(cols)].sum())
        if mass > best:
            best, chosen, col_groups = mass, int(index), candidate
    row_groups = np.empty(rows, np.int64)
    row_groups[members[chosen]] = np.arange(num_groups)[:, None]
    return row_groups, col_groups
