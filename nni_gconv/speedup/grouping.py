"""Block-diagonal masks become group convolutions, with as few permutations left as can be.

A group convolution reads its groups side by side and writes them side by side. Where the channels
of a segment (see :mod:`nni_gconv.graph.segments`) may be permuted, they are put in the order that
serves most of the convolutions that write or read them, at no cost. What another convolution needs
in another order passes a gather, one in front of it or one behind it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from nni_gconv.graph import ChannelMap, ChannelOrder, GroupedLayer, Segments

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Grouping:
    """How a convolution becomes one of more groups.

    Attributes
    ----------
    module, weight : str
        Dotted names of the layer and of its weight.
    rows : list of int
        Filters that stay, group by group.
    columns : list of list of int
        Which of the input channels that its filters have weights for each group keeps.
    gather_in, gather_out : list of int or None
        Index of the gather on the channels in front of the layer, and behind it.
    """

    module: str
    weight: str
    rows: list[int]
    columns: list[list[int]]
    gather_in: list[int] | None
    gather_out: list[int] | None

    @property
    def gathers(self) -> int:
        """Number of gathers that are left, 0 to 2."""
        return (self.gather_in is not None) + (self.gather_out is not None)


def group_layers(
    channels: ChannelMap, removed: Bools, layers: Sequence[GroupedLayer], *, fold: bool = True
) -> tuple[list[Grouping], ChannelOrder, list[str]]:
    """Decide the order of all channels and what each group convolution is made of.

    Parameters
    ----------
    channels : ChannelMap
        Of the dense model.
    removed : ndarray of bool, shape (classes,)
        Classes that go.
    layers : sequence of GroupedLayer
        Candidates.
    fold : bool
        False leaves channels in the dense model's order and permutes by gathers alone.

    Returns
    -------
    groupings : list of Grouping
    order : ChannelOrder
        The order of the channels on every axis.
    notes : list of str
        Layers that stay as they are, with zeros, and why.
    """
    segments = Segments(channels, removed)
    kept: list[_Kept] = []
    notes = []
    for layer in layers:
        equal = _Kept.of(layer, removed)
        if equal is not None:
            kept.append(equal)
        else:
            stays = "dense" if layer.had == 1 else f"at {layer.had} groups"
            notes.append(f"{layer.module}: stays {stays}, its groups would not be equally wide")
    ranks = _choose(segments, kept) if fold else {}
    order = ChannelOrder(segments, removed, ranks)
    made = [_grouping(layer, order) for layer in kept]
    unwrappable = [g for g in made if g.gathers and not g.module]
    notes += ["the model is one convolution and has no place for a gather" for _ in unwrappable]
    return [g for g in made if g not in unwrappable], order, notes


@dataclass(frozen=True)
class _Kept:
    """A layer without what goes: classes and groups along its two sides, 0 out and 1 in."""

    layer: GroupedLayer
    classes: tuple[Ints, Ints]
    groups: tuple[Ints, Ints]

    @property
    def weight(self) -> str:
        """Name of the layer's weight."""
        return self.layer.weight

    @property
    def num_groups(self) -> int:
        """Number of its groups."""
        return self.layer.groups.num_groups

    @classmethod
    def of(cls, layer: GroupedLayer, removed: Bools) -> _Kept | None:
        classes, groups = [], []
        found = layer.groups
        for axis, of in ((layer.rows, found.rows), (layer.columns, found.columns)):
            stays = ~removed[axis]
            classes.append(axis[stays])
            groups.append(of[stays])
            count = np.bincount(groups[-1] + 1, minlength=found.num_groups + 1)
            if count[0] or len(set(count[1:].tolist())) != 1:
                return None
        return cls(layer, (classes[0], classes[1]), (groups[0], groups[1]))


# -- choosing the order ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wish:
    """That the groups of one side of a layer stand together in a segment."""

    layer: _Kept
    side: int
    groups: Ints  # of each member of the segment

    @property
    def key(self) -> bytes:
        """Equal for wishes that ask for the same parts, however numbered."""
        _, first = np.unique(self.groups, return_index=True)
        number = np.empty(int(self.groups.max()) + 1, np.int64)
        number[self.groups[np.sort(first)]] = np.arange(len(first))
        return number[self.groups].tobytes()


#: Wishes that one order of a segment grants: those for the same parts together, coarse parts first.
_Granted = list[list[_Wish]]
#: Weight of a layer, and one of the groups that it had -> what that one became, in the order in
#: which they stand, once a segment has fixed it.
_Orders = dict[tuple[str, int], list[int]]


def _choose(segments: Segments, layers: Sequence[_Kept]) -> dict[int, Ints]:
    """Find for each segment the order that saves most gathers: segment -> rank of each member."""
    wishes: dict[int, list[_Wish]] = {}
    for layer in layers:
        for side in (0, 1):
            for segment, groups in _by_segment(segments, layer, side):
                wishes.setdefault(segment, []).append(_Wish(layer, side, groups))
    granted = {segment: _agree(asked) for segment, asked in wishes.items()}
    ranks: dict[int, Ints] = {}
    orders: _Orders = {}
    for segment in _visits(granted):
        members = _members_in_order(granted[segment], orders)
        ranks[segment] = np.argsort(members)
        orders = {**_orders_fixed(granted[segment], members), **orders}
    return ranks


def _visits(granted: Mapping[int, _Granted]) -> list[int]:
    """Put segments in order: from those that most depends on to those that their layers lead to."""
    of = {s: {w.layer.weight for level in levels for w in level} for s, levels in granted.items()}
    visited: dict[int, None] = {}
    for start in sorted(granted, key=lambda s: -sum(map(len, granted[s]))):
        queue = deque([start])
        while queue:
            segment = queue.popleft()
            if segment not in visited:
                visited[segment] = None
                queue += [s for s in granted if s not in visited and of[s] & of[segment]]
    return list(visited)


def _by_segment(segments: Segments, layer: _Kept, side: int) -> Iterable[tuple[int, Ints]]:
    """Groups of each segment's members, where each group lies in one segment and stands once."""
    classes, groups = layer.classes[side], layer.groups[side]
    of = segments.of[classes]
    if len(np.unique(classes)) != len(classes):
        return
    for group in range(layer.num_groups):
        if len(np.unique(of[groups == group])) != 1:
            return
    for segment in np.unique(of):
        inside = of == segment
        aligned = np.empty(int(inside.sum()), np.int64)
        aligned[segments.place[classes[inside]]] = groups[inside]
        yield int(segment), aligned


def _agree(wishes: Sequence[_Wish]) -> _Granted:
    """Choose wishes that one order can grant, those of equal parts together, coarse parts first.

    An edge from one layer to another passes one gather at most when all that write the segment, or
    all that read it, have their way; such a choice goes before a larger one.
    """
    by_key: dict[bytes, list[_Wish]] = {}
    for wish in wishes:
        by_key.setdefault(wish.key, []).append(wish)
    sides = Counter(w.side for w in wishes)

    def worth(alike: list[_Wish]) -> tuple[bool, int, int]:
        mine = Counter(w.side for w in alike)
        whole = any(mine[s] == sides[s] for s in (0, 1))
        return (whole, len(alike), mine[0])

    ranking = sorted(by_key.values(), key=worth, reverse=True)
    chosen = [ranking[0]]
    for alike in ranking[1:]:
        tried = sorted([*chosen, alike], key=lambda level: int(level[0].groups.max()))
        order = np.lexsort([level[0].groups for level in reversed(tried)])
        if all(_contiguous(level[0].groups[order]) for level in tried):
            chosen = tried
    return chosen


def _contiguous(groups: Ints) -> bool:
    return int((groups[1:] != groups[:-1]).sum()) + 1 == len(np.unique(groups))


def _members_in_order(levels: _Granted, orders: _Orders) -> Ints:
    """Sort the members of a segment, coarse parts first, in the order that layers already have."""
    keys = []
    known = {weight for weight, _ in orders}
    for level in levels:
        speaker = next((w for w in level if w.layer.weight in known), level[0])
        present = [
            group
            for part, own in _by_part(speaker.layer, speaker.groups).items()
            for group in orders.get((speaker.layer.weight, part), own)
            if group in own
        ]
        place = np.empty(max(present) + 1, np.int64)
        place[present] = np.arange(len(present))
        keys.append(place[speaker.groups])
    return np.lexsort([np.arange(len(keys[0])), *reversed(keys)])


def _orders_fixed(levels: _Granted, members: Ints) -> _Orders:
    """Read off a segment how the groups of layers stand that lie in it with all of them."""
    fixed: _Orders = {}
    for wish in chain.from_iterable(levels):
        for part, standing in _by_part(wish.layer, wish.groups[members]).items():
            if len(standing) == wish.layer.num_groups // wish.layer.layer.had:
                fixed.setdefault((wish.layer.weight, part), standing)
    return fixed


def _by_part(kept: _Kept, groups: Ints) -> dict[int, list[int]]:
    """Divide groups, in the order they stand, by which of the layer's first ones they are of."""
    found: dict[int, list[int]] = {}
    for group in dict.fromkeys(groups.tolist()):
        found.setdefault(group // (kept.num_groups // kept.layer.had), []).append(group)
    return found


# -- what it comes to -----------------------------------------------------------------------------


def _grouping(kept: _Kept, order: ChannelOrder) -> Grouping:
    """Read off the order what a layer keeps, and which gathers it needs."""
    layer = kept.layer
    rows, columns = order.positions(layer.rows), order.positions(layer.columns)
    of_row, of_column = layer.groups.rows[rows], layer.groups.columns[columns]
    # Writing in order is worth as much as reading in order; both are possible if they agree.
    leader = next((of for of in (of_row, of_column) if _contiguous(of)), of_column)
    place = np.argsort(list(dict.fromkeys(leader.tolist())))
    out = np.argsort(place[of_row], kind="stable")
    into = np.argsort(place[of_column], kind="stable")
    width = len(columns) // layer.groups.num_groups
    return Grouping(
        module=layer.module,
        weight=layer.weight,
        rows=rows[out].tolist(),
        columns=(columns[into] % layer.width).reshape(-1, width).tolist(),
        gather_in=_index(into),
        gather_out=_index(np.argsort(out, kind="stable")),
    )


def _index(index: Ints) -> list[int] | None:
    """Return a gather's index, or None when it moves nothing."""
    return None if np.array_equal(index, np.arange(len(index))) else index.tolist()
