"""Layers that meet in the same channels: each shared side is one unknown.

With all other sides fixed, channel c earns in group g what each of its layers gives it there, so
the best groups of a side are one exact balanced assignment of summed profits. That holds as well
where groups are related: of the groups g and h of a layer's two sides, `affinity[g, h]` says how
much of the score between them counts (the identity: that inside the groups alone).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition.assignment import balanced_assignment, group_mass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Sides = dict[Hashable, Ints]
#: A side and the number of a layer that touches it -> groups of the other side, what they earn.
Known = dict[tuple[Hashable, int], tuple[Ints, Floats]]


@dataclass(frozen=True, eq=False)
class SidedLayer:
    """A matrix of scores, as shares of their sum, and the names of its sides.

    Attributes
    ----------
    scores : ndarray, shape (F, C)
    row, column : hashable
        Different names.
    affinity : ndarray, shape (G, G)
        Symmetric; what the score between two of the layer's G groups counts.
    """

    scores: Floats
    row: Hashable
    column: Hashable
    affinity: Floats

    @property
    def num_groups(self) -> int:
        """G of this layer; that of a side may be a multiple of it."""
        return len(self.affinity)


def sided_layers(
    scores: Sequence[Floats],
    rows: Sequence[Hashable],
    columns: Sequence[Hashable],
    affinities: Sequence[Floats],
) -> list[SidedLayer]:
    """Check sides by their names and lengths.

    Raises
    ------
    ConfigError
        Sides of one name differ in length, or a layer has one name for both.
    """
    layers = []
    lengths: dict[Hashable, int] = {}
    for index, (matrix, row, column) in enumerate(zip(scores, rows, columns, strict=True)):
        if row == column:
            raise ConfigError(f"scores[{index}]: {row!r} names both sides of the layer")
        for name, length in ((row, matrix.shape[0]), (column, matrix.shape[1])):
            if lengths.setdefault(name, length) != length:
                raise ConfigError(
                    f"scores[{index}]: side {name!r} has {length} channels, elsewhere "
                    f"{lengths[name]}"
                )
        total = float(matrix.sum())
        shares = np.asarray(matrix, np.float64) / (total or 1.0)
        layers.append(SidedLayer(shares, row, column, affinities[index]))
    return layers


def connected(layers: Sequence[SidedLayer]) -> list[list[int]]:
    """Indices of layers that share sides, directly or by others."""
    names: dict[Hashable, int] = {}
    for layer in layers:
        names.setdefault(layer.row, len(names))
        names.setdefault(layer.column, len(names))
    ends = [(names[layer.row], names[layer.column]) for layer in layers]
    first, second = zip(*ends, strict=True) if ends else ((), ())
    links = coo_matrix((np.ones(len(ends)), (first, second)), (len(names),) * 2)
    component = connected_components(links, directed=False)[1]
    grouped: dict[int, list[int]] = defaultdict(list)
    for index, end in enumerate(first):
        grouped[int(component[end])].append(index)
    return list(grouped.values())


class SharedSides:
    """Layers that hang together, and for each side those that touch it.

    Parameters
    ----------
    layers : sequence of SidedLayer
        Where layers of different G share a side, it is split in as many groups as all of them
        divide, and a layer's groups are those that stand side by side.

    Attributes
    ----------
    touching : dict
        Side -> (layer, its scores with that side first, the other side).
    num_groups : dict
        Groups that each side is split in.

    Examples
    --------
    >>> scores = np.array([[9.0, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7]])
    >>> problem = SharedSides(sided_layers([scores], ["out"], ["in"], [np.eye(2)]))
    >>> sides, retained = problem.alternate(problem.spread({"in": np.array([0, 1, 0, 1])}))
    >>> sides["out"].tolist(), round(retained, 3)
    ([0, 1, 0, 1], 0.833)
    """

    def __init__(self, layers: Sequence[SidedLayer]) -> None:
        self.layers = layers
        self.touching: dict[Hashable, list[tuple[SidedLayer, Floats, Hashable]]] = {}
        self.num_groups: dict[Hashable, int] = {}
        for layer in layers:
            ends = (
                (layer.row, layer.scores, layer.column),
                (layer.column, layer.scores.T, layer.row),
            )
            for side, scores, other in ends:
                self.touching.setdefault(side, []).append((layer, scores, other))
                before = self.num_groups.get(side, 1)
                self.num_groups[side] = math.lcm(before, layer.num_groups)

    def of_layer(self, layer: SidedLayer, side: Hashable, groups: Sides) -> Ints:
        """Groups of a side as one of its layers counts them."""
        return groups[side] // (self.num_groups[side] // layer.num_groups)

    def profit(self, side: Hashable, groups: Sides, known: Known | None = None) -> Floats:
        """What each channel of a side earns in each group, from layers whose other side is known.

        Shape (n, G of the side). What `known` holds of a layer is taken while the groups of its
        other side are the same array, and kept there anew else.
        """
        known = {} if known is None else known
        total: Floats | float = 0.0
        for index, (layer, scores, other) in enumerate(self.touching[side]):
            if other in groups:
                key = side, index
                if key not in known or known[key][0] is not groups[other]:
                    mass = group_mass(scores, self.of_layer(layer, other, groups), layer.num_groups)
                    repeats = self.num_groups[side] // layer.num_groups
                    earned = np.repeat(mass @ layer.affinity, repeats, axis=1)
                    known[key] = groups[other], earned
                total = total + known[key][1]
        return total  # type: ignore[return-value]

    def retained(self, groups: Sides) -> float:
        """Sum over layers of the share of their scores that counts."""
        total = 0.0
        for layer in self.layers:
            rows, columns = (self.of_layer(layer, s, groups) for s in (layer.row, layer.column))
            between = group_mass(
                group_mass(layer.scores, columns, layer.num_groups).T, rows, layer.num_groups
            )
            total += float((between * layer.affinity).sum())
        return total

    def spread(self, groups: Sides) -> Sides:
        """Carry groups from the sides that have them to all others, each exactly."""
        groups = dict(groups)
        while missing := [s for s in self.touching if s not in groups]:
            known = {s: sum(o in groups for *_, o in self.touching[s]) for s in missing}
            side = max(missing, key=lambda s: known[s])
            groups[side] = balanced_assignment(self.profit(side, groups))
        return groups

    def alternate(self, groups: Sides) -> tuple[Sides, float]:
        """Assign every side exactly, and again what lies opposite to a change, until none gains."""
        groups = dict(groups)
        known: Known = {}
        stale = dict.fromkeys(self.touching)
        while stale:
            side = next(iter(stale))
            del stale[side]
            profit = self.profit(side, groups, known)
            found = balanced_assignment(profit)
            each = np.arange(len(found))
            before = float(profit[each, groups[side]].sum())
            if float(profit[each, found].sum()) > before * (1 + 1e-12):
                groups[side] = found
                stale.update(dict.fromkeys(other for *_, other in self.touching[side]))
        return groups, self.retained(groups)
