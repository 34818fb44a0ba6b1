"""The groups that a mask leaves: a matrix of connections that is block-diagonal up to permutation.

Filters and input channels that connections join form components; a group convolution needs them in
G groups of equally many filters and equally many channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import bmat, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channel_map import Balance, ChannelMap
from nni_gconv.graph.masks import Wiring
from nni_gconv.graph.recorder import op_name
from nni_gconv.graph.rules import argument
from nni_gconv.graph.trace import Graph

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Belongs to no group: a filter or channel that is masked whole and must go.
LOOSE = -1

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class MaskGroups:
    """Groups of a masked layer.

    Attributes
    ----------
    rows : ndarray of int64, shape (F,)
        Group of each filter, or -1 for one that no group has room for.
    columns : ndarray of int64, shape (C,)
        Group of each input channel, or -1.
    num_groups : int
        G.
    """

    rows: Ints
    columns: Ints
    num_groups: int


def find_mask_groups(connected: Bools, most: int | None = None) -> MaskGroups | None:
    """Find the most equal groups such that nothing connects two of them.

    Parameters
    ----------
    connected : ndarray of bool, shape (F, C)
        True where a filter reads a channel. Filters and channels without any connection are dealt
        out to groups that have room.
    most : int, optional
        Most groups.

    Returns
    -------
    MaskGroups or None
        None when there are no two groups, or components do not fill groups of one size.

    Examples
    --------
    >>> groups = find_mask_groups(np.array([[0, 1, 0, 1], [1, 0, 1, 0]] * 2, bool))
    >>> groups.rows.tolist(), groups.columns.tolist()
    ([0, 1, 0, 1], [1, 0, 1, 0])
    """
    filters, channels = connected.shape
    live_rows, live_columns = connected.any(1), connected.any(0)
    if connected[np.ix_(live_rows, live_columns)].all():
        return None
    component = _components(connected)
    names = np.unique(component[:filters][live_rows])
    if len(names) < 2:
        return None
    of_row = np.where(live_rows, np.searchsorted(names, component[:filters]), LOOSE)
    of_column = np.where(live_columns, np.searchsorted(names, component[filters:]), LOOSE)
    size = np.stack([_count(of_row, len(names)), _count(of_column, len(names))], axis=1)
    for num_groups in range(min(len(names), most or len(names)), 1, -1):
        room = np.array([filters // num_groups, channels // num_groups])
        group = _pack(size, num_groups, room)
        if group is None:
            continue
        rows, columns = (np.where(of >= 0, group[of], LOOSE) for of in (of_row, of_column))
        return MaskGroups(
            _fill(rows, num_groups, filters), _fill(columns, num_groups, channels), num_groups
        )
    return None


def _components(connected: Bools) -> Ints:
    """Component of each filter, then of each channel."""
    links = csr_matrix(connected)
    return connected_components(bmat([[None, links], [links.T, None]]), directed=False)[1]


def _count(groups: Ints, num_groups: int) -> Ints:
    return np.bincount(groups[groups >= 0], minlength=num_groups)


def _pack(size: Ints, num_groups: int, room: Ints) -> Ints | None:
    """Group of each component, the largest first and each into the emptiest group it fits in."""
    if (size.max(0) > room).any():
        return None
    load = np.zeros((num_groups, 2), np.int64)
    group = np.empty(len(size), np.int64)
    # Equal components keep their order, so that G of them are G groups in the order they stand.
    for index in np.lexsort((np.arange(len(size)), -size.sum(1))):
        fits = ((load + size[index]) <= room).all(1)
        if not fits.any():
            return None
        best = np.flatnonzero(fits)[load[fits].sum(1).argmin()]
        load[best] += size[index]
        group[index] = best
    return group


def _fill(groups: Ints, num_groups: int, size: int) -> Ints:
    """Deal loose members out so that all groups are as wide as can be, in order."""
    groups = groups.copy()
    loose = np.flatnonzero(groups < 0)
    count = _count(groups, num_groups)
    # What does not fill every group equally stays loose: it has to go.
    width = size // num_groups if size % num_groups == 0 else int(count.max())
    wanted = np.repeat(np.arange(num_groups), width - count)
    groups[loose[: len(wanted)]] = wanted
    return groups


# -- in a traced model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupedLayer:
    """A convolution whose mask leaves groups, more than it has.

    Attributes
    ----------
    module, weight : str
        Dotted names of the layer and of its weight.
    rows, columns : ndarray of int64, shapes (F,) and (C,)
        Class of each filter and of each input channel.
    groups : MaskGroups
        Of both.
    had : int
        How many groups it has without the mask; 1 for a dense convolution.
    """

    module: str
    weight: str
    rows: Ints
    columns: Ints
    groups: MaskGroups
    had: int = 1

    @property
    def width(self) -> int:
        """Input channels that a filter has weights for."""
        return len(self.columns) // self.had


def find_grouped(graph: Graph, channels: ChannelMap, wiring: Wiring) -> list[GroupedLayer]:
    """Find the convolutions whose masks leave groups, in the order they run."""
    found: dict[str, GroupedLayer] = {}
    for node in graph.nodes:
        weight = _own_weight(graph, node)
        if weight is None or weight in found or not wiring.masked(weight):
            continue
        rows, columns = (_labels(channels, weight, dim) for dim in (0, 1))
        had = int(argument(node, 6, "groups", 1))  # type: ignore[arg-type]
        groups = _further_groups(wiring.of(weight).numpy(), had)
        if rows is not None and columns is not None and groups is not None:
            found[weight] = GroupedLayer(
                graph.owner(node), weight, channels.of(rows), channels.of(columns), groups, had
            )
    return list(found.values())


def _labels(channels: ChannelMap, weight: str, dim: int) -> Tensor | None:
    """Return the labels of a convolution's filters, or of all the input channels it reads."""
    axis = channels.axes.get((weight, dim))
    if axis is not None or dim == 0:
        return None if axis is None else axis.labels
    read = [r.labels for r in channels.reads if r.weight == weight and r.groups > 1]
    return read[0] if len(read) == 1 else None


def _further_groups(connected: Bools, had: int) -> MaskGroups | None:
    """Find groups inside each of the groups that a convolution has, as many in each."""
    if had == 1:
        return find_mask_groups(connected)
    if min(len(connected) // had, connected.shape[1]) == 1:
        return None
    most: int | None = None
    while True:
        inside = []
        for block in np.split(connected, had):
            part = find_mask_groups(block, most)
            if part is None:
                return None
            inside.append(part)
        most = min(part.num_groups for part in inside)
        if all(part.num_groups == most for part in inside):
            break
    rows, columns = (
        np.concatenate([np.where(of < 0, LOOSE, of + n * most) for n, of in enumerate(side)])
        for side in ([part.rows for part in inside], [part.columns for part in inside])
    )
    return MaskGroups(rows, columns, most * had)


def _own_weight(graph: Graph, node: Node) -> str | None:
    """Name the weight of a convolution that is called as a plain torch module."""
    if op_name(node) not in ("conv1d", "conv2d", "conv3d"):
        return None
    weight = node.args[1]
    name = graph.tensors.get(weight.name) if isinstance(weight, Node) else None
    module = graph.caller(node)
    if name is None or not isinstance(module, _CONVOLUTIONS):
        return None
    # A forward of a subclass, or another layer with the same weight, may count on what it sees.
    kind = next(k for k in _CONVOLUTIONS if isinstance(module, k))
    plain = type(module).forward is kind.forward
    plain = plain and module.groups == argument(node, 6, "groups", 1)
    owners = {id(graph.modules[alias.rpartition(".")[0]]) for alias in graph.aliases[name]}
    if not plain or owners != {id(module)} or getattr(module, "weight", None) is None:
        return None
    return name


def balances(channels: ChannelMap, layers: Sequence[GroupedLayer]) -> tuple[Balance, ...]:
    """What channels have to keep so that groups stay equally wide."""
    made = []
    for layer in layers:
        sides = ((0, layer.groups.rows), (1, layer.groups.columns))
        for dim, groups in sides:
            inside = torch.from_numpy(groups >= 0)
            of_side = _labels(channels, layer.weight, dim)
            assert of_side is not None, "it has been found by these labels"
            labels = of_side[inside]
            where = f"groups that the mask of {layer.module} leaves"
            made.append(Balance(labels, torch.from_numpy(groups)[inside], where))
    return tuple(made)
