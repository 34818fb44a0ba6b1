"""Score matrices with known answers, and the slow, obvious way to find one."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np

G1 = np.array([[9, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7.5]])
G2 = np.array(
    [[9, 3.01, 9.02, 7.03], [9.04, 2.05, 7.06, 9.07], [1.08, 4.09, 6.10, 1.11],
     [5.12, 6.13, 7.14, 9.15]]
)  # fmt: skip
G2B = np.array(
    [[2, 2.01, 2.02, 7.03], [9.04, 9.05, 7.06, 9.07], [8.08, 1.09, 2.10, 8.11],
     [1.12, 9.13, 8.14, 9.15]]
)  # fmt: skip
_I, _J = np.indices((8, 8))
G3 = np.where(_I % 4 == 3 * _J % 4, 10 + 0.1 * ((3 * _I + 5 * _J) % 7), 0.1 * ((_I * _J) % 5))
G6 = np.array(
    [[5, 1, 4, 0, 6, 1, 5, 1], [1, 6, 0, 5, 1, 4, 2, 7], [4, 2, 6, 1, 5, 0, 6, 0],
     [0, 5, 1, 7, 2, 6, 1, 4]]
) + 0.001 * np.arange(32).reshape(4, 8)  # fmt: skip


def kernels(seed: int, rows: int, cols: int, size: int = 3) -> np.ndarray:
    """Norms of Gaussian kernels without any structure."""
    weight = np.random.default_rng(seed).standard_normal((rows, cols, size * size))
    return np.linalg.norm(weight, axis=2)


def planted(seed: int, side: int, groups: int) -> np.ndarray:
    """The paper's benchmark: blocks of U[0,1) + 10 U[0,1), zero elsewhere, shuffled."""
    rng = np.random.default_rng(seed)
    block = np.kron(np.eye(groups), np.ones((side // groups, side // groups)))
    scores = block * (rng.random((side, side)) + 10 * rng.random((side, side)))
    return scores[rng.permutation(side)][:, rng.permutation(side)]


def best_by_brute_force(scores: np.ndarray, groups: int) -> float:
    """Optimum by trying every pair of splits, with code that shares nothing with the library."""
    rows, cols = scores.shape
    best = 0.0
    row_splits, col_splits = (
        list(_splits(tuple(range(rows)), rows // groups)),
        list(_splits(tuple(range(cols)), cols // groups)),
    )
    orders = list(permutations(range(groups)))
    for row_split in row_splits:
        by_group = np.stack([scores[list(r)].sum(axis=0) for r in row_split])
        for col_split in col_splits:
            mass = np.stack([by_group[:, list(c)].sum(axis=1) for c in col_split], axis=1)
            best = max(best, *(sum(mass[g, o[g]] for g in range(groups)) for o in orders))
    return best


def _splits(items: tuple[int, ...], size: int):
    if not items:
        yield ()
        return
    for others in combinations(items[1:], size - 1):
        group = (items[0], *others)
        for rest in _splits(tuple(i for i in items if i not in group), size):
            yield (group, *rest)
