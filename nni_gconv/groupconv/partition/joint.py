"""Partitions of several layers that share sides.

Two layers that write, or write and read, the same channels need no permutation between them if
they split these channels alike. A shared side is then one unknown (:mod:`.sides`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

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
from nni_gconv.groupconv.partition.solve import BATCH_NUMBERS, partition

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
    parts = connected(layers)
    found = {
        index: partition(scores[index], num_groups, restarts=restarts, seed=seed)
        for index, *others in parts
        if not others
    }
    for batch in _batches(layers, [members for members in parts if len(members) > 1]):
        problems = [SharedSides([layers[i] for i in members]) for members in batch]
        solved = _solve(problems, num_groups, restarts, seed)
        for members, sides in zip(batch, solved, strict=True):
            for index in members:
                layer, original = layers[index], np.asarray(scores[index], np.float64)
                split = (sides[layer.row], sides[layer.column])
                mass = retained_mass(original, *split)
                bound = max(mass, upper_bound(original, num_groups, mass, steps=0))
                found[index] = Partition(
                    *numbered_by_column(*split), mass, bound, float(original.sum())
                )
    return [found[index] for index in range(len(layers))]


def _batches(layers: Sequence[SidedLayer], parts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Parts whose layers have the same shapes and share the same sides, such as equal blocks."""
    alike: dict[tuple[Any, ...], list[list[int]]] = {}
    for members in parts:
        number: dict[Hashable, int] = {}
        shape = tuple(
            (
                layers[index].scores.shape,
                number.setdefault(layers[index].row, len(number)),
                number.setdefault(layers[index].column, len(number)),
            )
            for index in members
        )
        alike.setdefault(shape, []).append(members)
    for batch in alike.values():
        length = max(1, BATCH_NUMBERS // sum(layers[index].scores.size for index in batch[0]))
        yield from (batch[i : i + length] for i in range(0, len(batch), length))


def _anneal(
    problems: Sequence[SharedSides],
    starts: Sequence[Sides],
    num_groups: int,
    chains: int,
    sweeps: int,
    seed: int,
) -> list[list[Sides]]:
    """Warm and cool copies of a solution of each problem; the heaviest first.

    Problems are alike, but for the names of their sides, which stand in the same order. All meet
    the same random numbers, so each ends as it would alone.
    """
    rng = np.random.default_rng(seed)
    names = [list(problem.touching) for problem in problems]
    opposite = [[names[0].index(other) for *_, other in t] for t in problems[0].touching.values()]
    single, schedule, states = [], [], []
    for place in range(len(opposite)):
        matrices = [
            np.concatenate([scores for _, scores, _ in problem.touching[sides[place]]], axis=1)
            for problem, sides in zip(problems, names, strict=True)
        ]
        single.append(np.stack(matrices).astype(np.float32))
        cooled = [cooling(matrix, num_groups, chains, sweeps) for matrix in matrices]
        schedule.append(np.concatenate(cooled, axis=1))
        first = [start[sides[place]] for start, sides in zip(starts, names, strict=True)]
        states.append(np.repeat(np.stack(first).T, chains, axis=1))
    for sweep in range(sweeps):
        for place, others in enumerate(opposite):
            states[place] = exchange(
                single[place], np.concatenate([states[other] for other in others]), states[place],
                num_groups, schedule[place][sweep], rng,
            )  # fmt: skip
    found = []
    for index, (problem, sides) in enumerate(zip(problems, names, strict=True)):
        copies = [
            {side: state[:, chain] for side, state in zip(sides, states, strict=True)}
            for chain in range(index * chains, (index + 1) * chains)
        ]
        found.append(sorted(copies, key=problem.retained, reverse=True))
    return found


def _solve(
    problems: Sequence[SharedSides], num_groups: int, restarts: int, seed: int
) -> list[Sides]:
    """Best groups found for all sides of each: several starts, then annealing of the best."""
    best = [_first(problem, num_groups) for problem in problems]
    if restarts:
        items = sum(map(len, best[0][0].values()))
        sweeps = default_sweeps(items, items // len(problems[0].layers), num_groups, restarts)
        starts = [groups for groups, _ in best]
        warmed = _anneal(problems, starts, num_groups, restarts, sweeps, seed)
        for index, (problem, copies) in enumerate(zip(problems, warmed, strict=True)):
            for copied in copies[:2]:
                groups, mass = problem.alternate(copied)
                if mass > best[index][1]:
                    best[index] = groups, mass
    return [groups for groups, _ in best]


def _first(problem: SharedSides, num_groups: int) -> tuple[Sides, float]:
    """Groups and their mass, from the layers' own partitions."""
    best: Sides = {}
    most = -np.inf
    # Starting from a layer that gains much by a good partition pays more than from a large one.
    apart = [partition(x.scores, num_groups, restarts=0) for x in problem.layers]
    gain = [p.fraction for p in apart]
    for index in np.argsort(-np.array(gain), kind="stable")[:_STARTS]:
        layer, start = problem.layers[index], apart[index]
        groups = problem.spread({layer.row: start.row_groups, layer.column: start.col_groups})
        groups, mass = problem.alternate(groups)
        if mass > most:
            best, most = groups, mass
    return best, most
