"""Exact balanced assignment, and the alternation of two of them.

With the row groups fixed, the best column groups solve a transportation problem: column c earns
``D[c, g] = sum of S[f, c] over the rows f of group g`` and every group has C/G places. Solving for
columns, then for rows, and so on, never loses mass and ends in a partition that no exchange of
rows alone, of any length, can better, nor one of columns alone.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Up to this many items, or places a group, the Hungarian algorithm is quicker than ours.
_HUNGARIAN_ITEMS, _HUNGARIAN_PLACES = 128, 8


def group_mass(scores: Floats, col_groups: Ints, num_groups: int) -> Floats:
    """Mass of each row in each group of columns: (F, C), (C,) -> (F, G)."""
    member = np.zeros((len(col_groups), num_groups), scores.dtype)
    member[np.arange(len(col_groups)), col_groups] = 1
    return scores @ member


def retained_mass(scores: Floats, row_groups: Ints, col_groups: Ints) -> float:
    """Sum of the scores whose row and column share a group."""
    return float(scores[row_groups[:, None] == col_groups[None, :]].sum())


def alternate(
    scores: Floats, col_groups: Ints, num_groups: int, max_rounds: int = 100
) -> tuple[Ints, Ints, float]:
    """Assign rows, columns, rows, ... exactly until nothing is gained.

    Parameters
    ----------
    scores : ndarray of float64, shape (F, C)
        Non-negative scores; G divides F and C.
    col_groups : ndarray of int64, shape (C,)
        Balanced start.
    num_groups : int
        G.
    max_rounds : int, optional
        A guard; a dozen rounds are usual.

    Returns
    -------
    row_groups, col_groups, retained
        Never less than the best row groups for the given columns retain.
    """
    best, row_groups = -np.inf, np.zeros(0, np.int64)
    for _ in range(max_rounds):
        by_row = group_mass(scores, col_groups, num_groups)
        row_groups = balanced_assignment(by_row)
        by_col = group_mass(scores.T, row_groups, num_groups)
        col_groups = balanced_assignment(by_col)
        retained = float(np.take_along_axis(by_col, col_groups[:, None], 1).sum())
        if retained <= best * (1 + 1e-12):
            break
        best = retained
    return row_groups, col_groups, retained


def balanced_assignment(profit: Floats) -> Ints:
    """Put n items in G groups of n/G places each, for the largest total profit, exactly.

    Parameters
    ----------
    profit : ndarray of float64, shape (n, G)
        Profit of item i in group g; G divides n.

    Returns
    -------
    ndarray of int64, shape (n,)
        Group of each item.

    Examples
    --------
    >>> import numpy as np
    >>> balanced_assignment(np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.5], [5.0, 4.9]])).tolist()
    [0, 0, 1, 1]
    """
    items, num_groups = profit.shape
    if num_groups == 1:
        return np.zeros(items, np.int64)
    if num_groups == 2:
        order = np.argsort(profit[:, 1] - profit[:, 0], kind="stable")
        groups = np.zeros(items, np.int64)
        groups[order[items // 2 :]] = 1
        return groups
    places = items // num_groups
    if items <= _HUNGARIAN_ITEMS or places <= _HUNGARIAN_PLACES:
        _, place = linear_sum_assignment(np.repeat(profit, places, axis=1), maximize=True)
        return np.asarray(place // places, np.int64)
    return _by_shortest_paths(profit)


def _by_shortest_paths(profit: Floats) -> Ints:
    """Transportation by prices, then shortest augmenting paths on the graph of the G groups.

    Items at their best price-adjusted group are optimal for the loads they make. Moving one item
    along each edge of a shortest path from a full group to one with room keeps that, whatever the
    prices were, so the prices only decide how many paths are left to walk.
    """
    items, num_groups = profit.shape
    places = items // num_groups
    groups = np.argmax(profit - _prices(profit, places), axis=1)
    room = places - np.bincount(groups, minlength=num_groups)
    cost = np.full((num_groups, num_groups), np.inf)
    mover = np.zeros((num_groups, num_groups), np.int64)
    stale = set(range(num_groups))
    while (room < 0).any():
        for group in stale:
            inside = np.flatnonzero(groups == group)
            if len(inside):
                loss = profit[inside, group][:, None] - profit[inside]
                mover[group] = inside[loss.argmin(axis=0)]
                cost[group] = loss.min(axis=0)
            else:
                cost[group] = np.inf
        path = _shortest_path(cost, room < 0, room > 0)
        for source, target in pairwise(path):
            groups[mover[source, target]] = target
        room[path[0]] += 1
        room[path[-1]] -= 1
        stale = set(path)
    return groups


def _prices(profit: Floats, places: int, passes: int = 4) -> Floats:
    """Group prices at which about `places` items want each group (dual coordinate descent)."""
    offers = np.ascontiguousarray(profit.T)  # groups first: maxima then run along the items
    net, prices = offers.copy(), np.zeros(len(offers))
    for _ in range(passes):
        for group, offer in enumerate(offers):
            net[group] = -np.inf
            wish = offer - net.max(axis=0)
            wish.partition(len(wish) - places)
            prices[group] = wish[len(wish) - places]
            net[group] = offer - prices[group]
    return prices


def _shortest_path(cost: Floats, sources: NDArray[np.bool_], sinks: NDArray[np.bool_]) -> list[int]:
    """Cheapest path from any source to any sink (Bellman-Ford: edges may be negative)."""
    num_groups = len(cost)
    distance = np.where(sources, 0.0, np.inf)
    parent = np.full(num_groups, -1)
    for _ in range(num_groups):
        through = distance[:, None] + cost
        before = through.argmin(axis=0)
        shorter = through[before, np.arange(num_groups)]
        # Rounding must not make a cycle of zero length look like a gain.
        better = shorter < distance - 1e-12 * (1 + np.abs(shorter))
        if not better.any():
            break
        distance[better] = shorter[better]
        parent[better] = before[better]
    path = [int(np.flatnonzero(sinks)[distance[sinks].argmin()])]
    while parent[path[-1]] >= 0:
        path.append(int(parent[path[-1]]))
    return path[::-1]
