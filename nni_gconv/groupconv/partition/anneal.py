"""Simulated annealing over both sides of a partition, many chains at once.

With the columns fixed, exchanging the groups of rows i and j gains
``D[i, g_j] + D[j, g_i] - D[i, g_i] - D[j, g_j]``, whatever other disjoint pairs do at the same
time: rows interact only through the columns. So half of all rows meet the other half in random
pairs and every pair takes its own Metropolis step, in all chains, in a few array operations; then
the columns do the same. Groups stay balanced throughout.

Noise would order at the temperature ``edge / G``, with the spectral edge
``edge = ||S||_F (sqrt(F) + sqrt(C)) / sqrt(F C)`` of the doubly centred scores S (mean field: the
largest singular value over G). Chains start from a good partition, not from chance: warmed to
between half and all of that temperature it loses its accidents and keeps its shape, and with the
same number of sweeps it ends higher than any start at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nni_gconv.groupconv.partition.assignment import retained_mass
from nni_gconv.groupconv.partition.bounds import centred

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Random pairings between two updates of the group masses.
_ROUNDS = 4
#: First temperatures of the chains, and the last of all, as shares of the ordering temperature.
_COOLEST, _WARMEST, _FROZEN = 0.5, 1.0, 0.15


def anneal(
    scores: Sequence[Floats],
    num_groups: int,
    starts: Sequence[tuple[Ints, Ints]],
    chains: int,
    sweeps: int,
    rng: np.random.Generator,
) -> list[tuple[Ints, Ints]]:
    """Warm and cool `chains` copies of a partition, each from a temperature of its own.

    Takes matrices of one shape together, because most of the time of small ones is not arithmetic.
    All of them meet the same random numbers, so each ends as it would alone.

    Parameters
    ----------
    scores : sequence of ndarray of float64, each of shape (F, C)
        L matrices of non-negative scores, scaled to at most 1; G divides F and C.
    num_groups : int
        G.
    starts : sequence of (ndarray of int64, ndarray of int64), shapes (F,) and (C,)
        Balanced row and column groups of each matrix.
    chains : int
        R, partitions of a matrix annealed together, at least 1.
    sweeps : int
        Temperatures; what is gained grows with the logarithm of this number.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    list of (row_groups, col_groups), shapes (R, F) and (R, C)
        For each matrix its partitions, heaviest first.
    """
    single = np.stack(scores).astype(np.float32)
    transposed = np.ascontiguousarray(single.transpose(0, 2, 1))
    rows = np.repeat(np.stack([start[0] for start in starts]).T, chains, axis=1)
    cols = np.repeat(np.stack([start[1] for start in starts]).T, chains, axis=1)
    schedule = [cooling(matrix, num_groups, chains, sweeps) for matrix in scores]
    for temperatures in np.concatenate(schedule, axis=1):
        rows = exchange(single, cols, rows, num_groups, temperatures, rng)
        cols = exchange(transposed, rows, cols, num_groups, temperatures, rng)
    found = []
    for index, matrix in enumerate(scores):
        own = slice(index * chains, (index + 1) * chains)
        masses = [
            retained_mass(matrix, *sides) for sides in zip(rows.T[own], cols.T[own], strict=True)
        ]
        order = np.argsort(-np.array(masses), kind="stable")
        found.append((rows.T[own][order], cols.T[own][order]))
    return found


def default_sweeps(rows: int, cols: int, num_groups: int, chains: int) -> int:
    """As many sweeps as about a fifth of a second affords, from 40 to 1000.

    An estimate from sizes alone, not a clock, so that results do not depend on the machine.
    """
    multiply = 4.0 * rows * cols * num_groups * chains / 3e10
    swaps = _ROUNDS * (rows + cols) * chains * 1.5e-8
    return int(np.clip(0.2 / (1.5e-4 + multiply + swaps), 40, 1000))


def cooling(scores: Floats, num_groups: int, chains: int, sweeps: int) -> NDArray[np.float32]:
    """Falling temperatures of each chain, shape (sweeps, chains)."""
    rows, cols = scores.shape
    edge = float(np.linalg.norm(centred(scores))) * (math.sqrt(rows) + math.sqrt(cols))
    ordering = max(edge / math.sqrt(rows * cols), 1e-30) / num_groups
    first = np.linspace(_WARMEST, _COOLEST, chains)
    time = np.linspace(0, 1, sweeps)[:, None]
    return (ordering * first * (_FROZEN / first) ** time).astype(np.float32)


def exchange(
    scores: NDArray[np.float32],
    others: Ints,
    groups: Ints,
    num_groups: int,
    temperatures: NDArray[np.float32],
    rng: np.random.Generator,
) -> Ints:
    """Metropolis exchanges of disjoint random pairs, given the groups of the other side.

    Parameters
    ----------
    scores : ndarray of float32, shape (L, n, m)
        Score matrices of L problems; their rows are moved.
    others : ndarray of int64, shape (m, L R)
        Groups of the columns, the R chains of a problem side by side.
    groups : ndarray of int64, shape (n, L R)
        Groups of the rows.
    num_groups : int
        G.
    temperatures : ndarray of float32, shape (L R,)
        Of each chain.
    rng : numpy.random.Generator
        Source of the pairs and of chance.

    Returns
    -------
    ndarray of int64, shape (n, L R)
        Groups of the rows, as balanced as they were.
    """
    # Profits lie in one flat array; item i of chain k in group g is at ``i wide + offset[k] + g``.
    problems, items, across = scores.shape
    chains = groups.shape[1] // problems
    wide = chains * num_groups
    member = np.zeros((problems, across, wide), np.float32)
    member.ravel()[others + _places(problems, chains, across, num_groups)] = 1
    profit = (scores @ member).ravel()
    half = items // 2
    order = rng.permutation(items)
    shifts = rng.integers(0, max(half, 1), _ROUNDS).tolist()
    chance = rng.standard_exponential((_ROUNDS, half, chains), dtype=np.float32)
    limits = chance[:, :, None] * -temperatures.reshape(problems, chains)
    # What follows is a few operations on small arrays each: most of their time is not arithmetic.
    offset = _offsets(problems, chains, items, num_groups)
    mixed, base = groups.take(order, axis=0), (order * wide)[:, None]
    mixed += offset
    left, right = mixed[:half], mixed[half : 2 * half]
    at_left, at_right = base[:half], base[half : 2 * half]
    of_left, of_right = profit.take(at_left + left), profit.take(at_right + right)
    for shift, limit in zip(shifts, limits.reshape(_ROUNDS, half, -1), strict=True):
        # Turning one half against the other makes the next pairs.
        right, at_right, of_right = (
            np.concatenate((side[shift:], side[:shift])) for side in (right, at_right, of_right)
        )
        new_left, new_right = profit.take(at_left + right), profit.take(at_right + left)
        gain = new_left + new_right
        gain -= of_left
        gain -= of_right
        swap = gain > limit
        moved = right - left
        moved *= swap
        left += moved
        right -= moved
        np.copyto(of_left, new_left, where=swap)
        np.copyto(of_right, new_right, where=swap)
    mixed[half : 2 * half], base[half : 2 * half] = right, at_right
    mixed -= offset
    result = np.empty_like(groups)
    result[base[:, 0] // wide] = mixed
    return result


@lru_cache(64)
def _offsets(problems: int, chains: int, items: int, num_groups: int) -> Ints:
    """Where each chain's groups start in an (L, n, R G) array, shape (L R,)."""
    problem = np.arange(problems)[:, None] * (items * chains * num_groups)
    return (problem + np.arange(chains) * num_groups).ravel()


@lru_cache(64)
def _places(problems: int, chains: int, items: int, num_groups: int) -> Ints:
    """Where each item's groups start in each chain of such an array, shape (n, L R)."""
    rows = (np.arange(items) * (chains * num_groups))[:, None]
    return rows + _offsets(problems, chains, items, num_groups)
