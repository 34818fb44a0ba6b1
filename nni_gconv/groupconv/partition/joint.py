"""Partitions of several layers that share sides.

Two layers that write, or write and read, the same channels need no permutation between them if
they split these channels alike. A shared side is then one unknown (:mod:`.sides`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from nni_gconv.groupconv.partition.anneal import cooling, default_sweeps, exchange
from nni_gconv.groupconv.partition.assignment import retained_mass
from nni_gconv.groupconv.partition.bounds import upper_bound
from nni_gconv.groupconv.partition.result import Partition, numbered_by_column
from nni_gconv.groupconv.partition.sides import (
    SharedSides,
    SidedLayer,
    Sides,
    connected,
    sided_layers,
)
from nni_gconv.groupconv.partition.solve import partition

Floats = NDArray[np.float64]

#: Layers from whose own partitions the search starts, at most.
_STARTS = 4


def partition_joint(
    scores: Sequence[Floats],
    rows: Sequence[Hashable],
    columns: Sequence[Hashable],
    num_groups: int,
    *,
    restarts: int = 8,
    seed: int = 0,
) -> list[Partition]:
    """Split layers whose sides are partly the same channels.

    Maximises the sum of the retained *fractions*, so that no layer counts for more because its
    weights are larger.

    Parameters
    ----------
    scores : sequence of ndarray, shapes (F, C)
        Non-negative scores of each layer.
    rows, columns : sequence of hashable
        Names of each layer's two sides; sides of one name are split alike. The two sides of one
        layer have different names.
    num_groups : int
        G of all layers; divides the length of every side.
    restarts : int, default 8
        Annealing chains; 0: none, for a result in milliseconds.
    seed : int, default 0
        Same seed, same result.

    Returns
    -------
    list of Partition
        One for each layer. A layer that shares no side is split as
        :func:`nni_gconv.groupconv.partition.partition` does.

    Raises
    ------
    ConfigError
        Sides of one name differ in length, or a layer has one name for both.

    Examples
    --------
    >>> first = np.array([[9.0, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7]])
    >>> a, b = partition_joint([first, first.T], ["x", "y"], ["in", "x"], 2)
    >>> a.row_groups.tolist(), b.col_groups.tolist()
    ([0, 1, 0, 1], [0, 1, 0, 1])
    """
    layers = sided_layers(scores, rows, columns, [np.eye(num_groups)] * len(scores))
    found: dict[int, Partition] = {}
    for members in connected(layers):
        if len(members) == 1:
            index = members[0]
            found[index] = partition(scores[index], num_groups, restarts=restarts, seed=seed)
            continue
        sides = _solve([layers[i] for i in members], num_groups, restarts, seed)
        for index in members:
            layer, original = layers[index], np.asarray(scores[index], np.float64)
            split = (sides[layer.row], sides[layer.column])
            mass = retained_mass(original, *split)
            bound = max(mass, upper_bound(original, num_groups, mass, steps=0))
            found[index] = Partition(
                *numbered_by_column(*split), mass, bound, float(original.sum())
            )
    return [found[index] for index in range(len(layers))]


def _anneal(
    problem: SharedSides, groups: Sides, num_groups: int, chains: int, sweeps: int, seed: int
) -> list[Sides]:
    """Warm and cool copies of a solution; the heaviest first."""
    rng = np.random.default_rng(seed)
    joined = {
        side: np.concatenate([scores for _, scores, _ in touching], axis=1)
        for side, touching in problem.touching.items()
    }
    schedule = {
        side: cooling(matrix, num_groups, chains, sweeps) for side, matrix in joined.items()
    }
    single = {side: matrix.astype(np.float32)[None] for side, matrix in joined.items()}
    states = {side: np.repeat(g[:, None], chains, axis=1) for side, g in groups.items()}
    for sweep in range(sweeps):
        for side, touching in problem.touching.items():
            others = np.concatenate([states[other] for *_, other in touching])
            states[side] = exchange(
                single[side], others, states[side], num_groups, schedule[side][sweep], rng
            )
    copies = [{side: s[:, chain] for side, s in states.items()} for chain in range(chains)]
    return sorted(copies, key=problem.retained, reverse=True)


def _solve(layers: Sequence[SidedLayer], num_groups: int, restarts: int, seed: int) -> Sides:
    """Best groups found for all sides: several starts, then annealing of the best."""
    problem = SharedSides(layers)
    best: Sides = {}
    most = -np.inf
    # Starting from a layer that gains much by a good partition pays more than from a large one.
    apart = [partition(x.scores, num_groups, restarts=0) for x in layers]
    gain = [p.fraction for p in apart]
    for index in np.argsort(-np.array(gain), kind="stable")[:_STARTS]:
        layer, start = layers[index], apart[index]
        groups = problem.spread({layer.row: start.row_groups, layer.column: start.col_groups})
        groups, mass = problem.alternate(groups)
        if mass > most:
            best, most = groups, mass
    if restarts:
        items = sum(map(len, best.values()))
        sweeps = default_sweeps(items, items // len(layers), num_groups, restarts)
        for copied in _anneal(problem, best, num_groups, restarts, sweeps, seed)[:2]:
            groups, mass = problem.alternate(copied)
            if mass > most:
                best, most = groups, mass
    return best
