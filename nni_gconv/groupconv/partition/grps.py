"""The paper's heuristic: group sort (GRPS) and maximum bipartite matching of blocks (MBM).

Zhao and Luk, "Efficient Structured Pruning and Architecture Searching for Group Convolution",
arXiv 1811.09341. Sorting moves heavy rows and columns to the last diagonal block, freezes it and
goes on with the block above; a linear assignment of row blocks to column blocks then decides
which of the G x G blocks are kept. All sorts are stable, so equal scores keep their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def grps_permutations(
    scores: Floats, num_groups: int, num_sort_iters: int = 10
) -> tuple[Ints, Ints]:
    """Order rows and columns so that mass gathers in the diagonal blocks (GRPS).

    For block g = G-1 .. 0, and `num_sort_iters` times each: columns above the frozen part are
    sorted by their mass in the last row block, then rows by their mass in the last column block.

    Parameters
    ----------
    scores : ndarray of float64, shape (F, C)
        Non-negative kernel scores; G divides F and C.
    num_groups : int
        G.
    num_sort_iters : int, optional
        The paper's N_S; 0 gives the identity.

    Returns
    -------
    rows, cols : ndarray of int64, shapes (F,) and (C,)
        Position -> original index.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.array([[9, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7.5]])
    >>> grps_permutations(scores, 2)[0].tolist()
    [1, 3, 0, 2]
    """
    height, width = scores.shape[0] // num_groups, scores.shape[1] // num_groups
    rows, cols = np.arange(scores.shape[0]), np.arange(scores.shape[1])
    for group in range(num_groups - 1, -1, -1):
        active_rows, active_cols = rows[: height * (group + 1)], cols[: width * (group + 1)]
        for _ in range(num_sort_iters):
            last_rows = scores[np.ix_(active_rows[height * group :], active_cols)]
            col_order = np.argsort(last_rows.sum(axis=0), kind="stable")
            active_cols = active_cols[col_order]
            last_cols = scores[np.ix_(active_rows, active_cols[-width:])]
            row_order = np.argsort(last_cols.sum(axis=1), kind="stable")
            active_rows = active_rows[row_order]
            if _is_identity(col_order) and _is_identity(row_order):
                break  # a fixed point: the sorts that are left would change nothing
        rows[: len(active_rows)], cols[: len(active_cols)] = active_rows, active_cols
    return rows, cols


def sort_permutations(scores: Floats) -> tuple[Ints, Ints]:
    """Order rows and columns by their own mass (the paper's SORT baseline)."""
    rows = np.argsort(scores.sum(axis=1), kind="stable")
    cols = np.argsort(scores.sum(axis=0), kind="stable")
    return rows, cols


def match_blocks(scores: Floats, rows: Ints, cols: Ints, num_groups: int) -> tuple[Ints, Ints]:
    """Pair row blocks with column blocks so that the most mass is kept (MBM).

    With ``B[u, v]`` the mass of row block u in column block v, maximises ``sum_u B[u, m(u)]`` over
    permutations m.

    Parameters
    ----------
    scores : ndarray of float64, shape (F, C)
        Non-negative scores.
    rows, cols : ndarray of int64, shapes (F,) and (C,)
        Permutations, position -> original index.
    num_groups : int
        G.

    Returns
    -------
    row_groups, col_groups : ndarray of int64, shapes (F,) and (C,)
        Group of each original row and column, not yet in canonical order.
    """
    height, width = len(rows) // num_groups, len(cols) // num_groups
    ordered = scores[np.ix_(rows, cols)]
    blocks = ordered.reshape(num_groups, height, num_groups, width).sum(axis=(1, 3))
    _, partner = linear_sum_assignment(blocks, maximize=True)
    row_groups, block_group = np.empty(len(rows), np.int64), np.empty(num_groups, np.int64)
    col_groups = np.empty(len(cols), np.int64)
    row_groups[rows] = np.repeat(np.arange(num_groups), height)
    block_group[partner] = np.arange(num_groups)
    col_groups[cols] = np.repeat(block_group, width)
    return row_groups, col_groups


def _is_identity(order: Ints) -> bool:
    return bool((order[1:] > order[:-1]).all())
