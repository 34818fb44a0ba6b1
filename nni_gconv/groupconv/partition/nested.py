"""Partitions within partitions: blocks of channels that are split again and again.

Structured Sparsification (arXiv 2002.08127) orders the filters and the input channels of a layer
such that its kernel scores gather in diagonal blocks, in two blocks first, in four next, and so on.
Score outside the blocks of the first split costs 1, outside those of the second `decay`, outside
those of the third `decay ** 2``; inside the last blocks it costs nothing::

    cost = sum over f, c of S[f, c] * decay ** t(f, c)

with t(f, c) the number of splits that leave f and c together. The orders are numbered here by the
last blocks: position inside a block means nothing, so each half of the search, all filters for
given channels, is an assignment of n filters to G blocks of n/G places, which is solved exactly.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition.assignment import group_mass, retained_mass
from nni_gconv.groupconv.partition.bounds import upper_bound
from nni_gconv.groupconv.partition.result import Partition, numbered_by_column
from nni_gconv.groupconv.partition.sides import (
    SharedSides,
    SidedLayer,
    Sides,
    connected,
    sided_layers,
)
from nni_gconv.groupconv.partition.solve import partition_many

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Layers whose own arrangement the others are fitted to, at most.
_STARTS = 4


def nested_counts(common: int) -> tuple[int, ...]:
    """Group counts that are split one after the other: each divides the next, the last is `common`.

    The smallest prime factors come first, so that powers of two give the paper's halvings.

    Parameters
    ----------
    common : int
        Common divisor of filters and input channels, at least 1.

    Examples
    --------
    >>> nested_counts(16), nested_counts(12), nested_counts(1)
    ((1, 2, 4, 8, 16), (1, 2, 4, 12), (1,))
    """
    counts, prime = [1], 2
    while counts[-1] < common:
        if (common // counts[-1]) % prime == 0:
            counts.append(counts[-1] * prime)
        else:
            prime += 1
    return tuple(counts)


def split_costs(counts: Sequence[int], decay: float = 0.5) -> Floats:
    """What the score between blocks of rows and of columns costs.

    Parameters
    ----------
    counts : sequence of int
        As of :func:`nested_counts`; the last is G.
    decay : float, default 0.5
        Cost at a split over that at the split before.

    Returns
    -------
    ndarray of float64, shape (G, G)
        ``decay ** t`` for blocks that the first t splits leave together, 0 for a block and itself.

    Examples
    --------
    >>> split_costs((1, 2, 4))
    array([[0. , 0.5, 1. , 1. ],
           [0.5, 0. , 1. , 1. ],
           [1. , 1. , 0. , 0.5],
           [1. , 1. , 0.5, 0. ]])
    """
    blocks = np.arange(counts[-1])
    together = np.zeros((len(blocks), len(blocks)), np.int64)
    for count in counts[1:]:
        of = blocks // (len(blocks) // count)
        together += of[:, None] == of
    return np.where(together < len(counts) - 1, decay**together, 0.0)


@dataclass(frozen=True, eq=False)
class NestedPartition:
    """Filters and input channels in the blocks of a nested partition.

    Attributes
    ----------
    counts : tuple of int
        Group counts, from 1, each a divisor of the next.
    row_groups, col_groups : ndarray of int64, shapes (F,) and (C,)
        Block of each filter and of each input channel, of as many as the last of `counts`.

    Examples
    --------
    >>> nested = NestedPartition((1, 2, 4), np.array([3, 2, 1, 0]), np.arange(4))
    >>> nested.mask(2).astype(int)  # what the first split keeps
    array([[0, 0, 1, 1],
           [0, 0, 1, 1],
           [1, 1, 0, 0],
           [1, 1, 0, 0]])
    """

    counts: tuple[int, ...]
    row_groups: Ints
    col_groups: Ints

    @classmethod
    def in_order(cls, filters: int, channels: int, counts: Sequence[int]) -> NestedPartition:
        """Return the partition whose blocks stand side by side as the channels do."""
        last = counts[-1]
        rows, columns = (np.repeat(np.arange(last), n // last) for n in (filters, channels))
        return cls(tuple(counts), rows, columns)

    def at(self, count: int) -> tuple[Ints, Ints]:
        """Groups of filters and of input channels after the split in `count` groups."""
        repeats = self.counts[-1] // count
        return self.row_groups // repeats, self.col_groups // repeats

    def mask(self, count: int) -> NDArray[np.bool_]:
        """Return what `count` groups keep, shape (F, C)."""
        rows, columns = self.at(count)
        return rows[:, None] == columns

    def orders(self) -> tuple[Ints, Ints]:
        """Return P and Q of the paper: the filter and the channel that stand at each position."""
        return np.argsort(self.row_groups, kind="stable"), np.argsort(
            self.col_groups, kind="stable"
        )

    def costs(self, decay: float = 0.5, depth: int | None = None) -> Floats:
        """What the score of each kernel costs, shape (F, C).

        Parameters
        ----------
        decay : float, default 0.5
            As in :func:`split_costs`.
        depth : int, optional
            Splits that count; default: all.
        """
        splits = self.counts if depth is None else self.counts[: depth + 1]
        rows, columns = self.at(splits[-1])
        return split_costs(splits, decay)[np.ix_(rows, columns)]

    def cost(self, scores: Floats, decay: float = 0.5) -> float:
        """Sum of the scores times their costs."""
        return float((scores * self.costs(decay)).sum())

    def kept(self, scores: Floats) -> tuple[float, ...]:
        """Share of the scores inside the groups, for each of `counts`.

        A layer without any score keeps all of it undivided, and nothing in groups.
        """
        last = self.counts[-1]
        between = group_mass(group_mass(scores, self.col_groups, last).T, self.row_groups, last)
        total = float(between.sum())
        if total == 0:
            return (1.0, *[0.0] * (len(self.counts) - 1))
        shares = [1.0]
        for count in self.counts[1:]:
            width = last // count
            blocks = between.reshape(count, width, count, width).sum((1, 3))
            shares.append(min(float(np.trace(blocks)) / total, shares[-1]))
        return tuple(shares)

    def last(self, scores: Floats) -> Partition:
        """Return the last split by itself, with a proven bound of what so many groups can keep."""
        sides, last = (self.row_groups, self.col_groups), self.counts[-1]
        mass = retained_mass(scores, *sides)
        bound = max(mass, upper_bound(scores, last, mass, steps=0))
        return Partition(*numbered_by_column(*sides), mass, bound, float(scores.sum()))


def arrange(
    scores: Sequence[Floats],
    counts: Sequence[Sequence[int]],
    rows: Sequence[Hashable] | None = None,
    columns: Sequence[Hashable] | None = None,
    *,
    decay: float = 0.5,
    start: Sequence[NestedPartition] | None = None,
) -> list[NestedPartition]:
    """Find nested partitions of little cost.

    Filters, then channels, then filters, ... are assigned exactly until nothing is gained, from the
    order the channels have and from one that is split top down: each block by
    :func:`nni_gconv.groupconv.partition.partition`, which finds the best split of small ones.
    The better is returned.

    Parameters
    ----------
    scores : sequence of ndarray, shapes (F, C)
        Non-negative scores of each layer.
    counts : sequence of sequence of int
        Group counts of each layer; its last divides F and C.
    rows, columns : sequence of hashable, optional
        Names of each layer's two sides. Sides of one name are split alike: they are as long, and
        what is minimised is the sum over layers of the cost relative to their scores. Default: no
        layer shares a side.
    decay : float, default 0.5
        As in :func:`split_costs`.
    start : sequence of NestedPartition, optional
        Begin with these alone; they are never made worse.

    Returns
    -------
    list of NestedPartition

    Raises
    ------
    ConfigError
        Counts that do not divide, or sides that do not fit.

    Examples
    --------
    >>> scores = np.array([[0, 1, 0, 9], [1, 0, 9, 0], [0, 9, 0, 1], [9, 0, 1, 0]])
    >>> found = arrange([scores], [(1, 2, 4)])[0]
    >>> found.cost(scores), found.kept(scores)
    (2.0, (1.0, 1.0, 0.9))
    >>> found.mask(2).astype(int)
    array([[0, 1, 0, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1],
           [1, 0, 1, 0]])

    """
    rows = [(i, "rows") for i in range(len(scores))] if rows is None else rows
    columns = [(i, "columns") for i in range(len(scores))] if columns is None else columns
    for index, (matrix, splits) in enumerate(zip(scores, counts, strict=True)):
        _check_counts(matrix.shape, splits, f"counts[{index}]")
    affinities = [1 - split_costs(splits, decay) for splits in counts]
    layers = sided_layers(scores, rows, columns, affinities)
    found: dict[int, NestedPartition] = {}
    for members in connected(layers):
        mine = [layers[i] for i in members]
        problem = SharedSides(mine)
        if start is None:
            begin = _fresh_starts(problem, [counts[i] for i in members])
        else:
            begin = [_as_sides(problem, mine, [start[i] for i in members])]
        ends = [problem.alternate(groups) for groups in begin]
        sides, _ = max(ends, key=lambda end: end[1])
        for index, layer in zip(members, mine, strict=True):
            ends_of = [problem.of_layer(layer, s, sides) for s in (layer.row, layer.column)]
            found[index] = NestedPartition(tuple(counts[index]), ends_of[0], ends_of[1])
    return [found[index] for index in range(len(layers))]


def _fresh_starts(problem: SharedSides, counts: Sequence[Sequence[int]]) -> list[Sides]:
    """Channels in the order they have, and what follows from splitting single layers top down."""
    in_order = {
        side: _in_order(touching[0][1].shape[0], problem.num_groups[side])
        for side, touching in problem.touching.items()
    }
    tops = []
    for layer, splits in zip(problem.layers, counts, strict=True):
        top = _top_down(layer.scores, splits)
        tops.append((float((layer.scores * top.costs()).sum()), layer, top))
    # Starting from a layer that gains much by a good order pays more than from a large one.
    tops.sort(key=lambda found: found[0])
    starts = [in_order]
    for _, layer, top in tops[:_STARTS]:
        ends = ((layer.row, top.row_groups), (layer.column, top.col_groups))
        known = {s: _refined(g / layer.num_groups, problem.num_groups[s]) for s, g in ends}
        starts.append(problem.spread(known))
    return starts


def _top_down(scores: Floats, counts: Sequence[int]) -> NestedPartition:
    """Split the whole matrix, then each diagonal block, and so on."""
    rows, columns = (np.zeros(size, np.int64) for size in scores.shape)
    for before, after in pairwise(counts):
        parts = after // before
        inside = [(rows == block, columns == block) for block in range(before)]
        blocks = [scores[np.ix_(*b)] for b in inside]
        found = partition_many(blocks, parts, restarts=0, bounds=False)
        rows, columns = rows * parts, columns * parts
        for (in_rows, in_columns), part in zip(inside, found, strict=True):
            rows[in_rows] += part.row_groups
            columns[in_columns] += part.col_groups
    return NestedPartition(tuple(counts), rows, columns)


def _as_sides(
    problem: SharedSides, layers: Sequence[SidedLayer], start: Sequence[NestedPartition]
) -> Sides:
    """Groups of each side from those its layers have: a finer order where they differ in number."""
    places: dict[Hashable, Floats] = {}
    for layer, nested in zip(layers, start, strict=True):
        for side, groups in ((layer.row, nested.row_groups), (layer.column, nested.col_groups)):
            places[side] = places.get(side, 0.0) + groups / layer.num_groups
    return {side: _refined(place, problem.num_groups[side]) for side, place in places.items()}


def _refined(places: Floats, num_groups: int) -> Ints:
    """Equal groups of channels that are sorted by their places, ties as they stand."""
    groups = np.empty(len(places), np.int64)
    groups[np.argsort(places, kind="stable")] = _in_order(len(places), num_groups)
    return groups


def _in_order(size: int, num_groups: int) -> Ints:
    return np.repeat(np.arange(num_groups), size // num_groups)


def _check_counts(shape: tuple[int, ...], counts: Sequence[int], where: str) -> None:
    nested = counts[0] == 1 and all(b % a == 0 and b > a for a, b in pairwise(counts))
    if not nested or math.gcd(*shape) % counts[-1]:
        raise ConfigError(
            f"{where}: {tuple(counts)} is no chain of divisors, from 1, of {shape[0]} filters and "
            f"{shape[1]} input channels"
        )
