"""Coupled sets: which filters of which layers can only be pruned together.

Classes of channels (see :mod:`nni_gconv.graph.channels`) that touch the same layers form one
set: the inner channels of a bottleneck, the stream of a stage of a residual network, a convolution
with the depthwise one behind it. A pruner ranks the channels of a set against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.display import Table
from nni_gconv.graph.balance import balance_classes
from nni_gconv.graph.channel_map import Axis, ChannelMap, place
from nni_gconv.graph.mask_groups import balances, find_grouped
from nni_gconv.graph.masks import Wiring, read_masks
from nni_gconv.graph.propagate import map_channels
from nni_gconv.graph.trace import Graph, example_input, trace


@dataclass(frozen=True)
class Member:
    """The part of one layer in a coupled set.

    Attributes
    ----------
    module : str
        Dotted name of the layer.
    parameter : str
        Dotted name of its weight.
    dim : int
        Axis of the weight that holds its filters (0; 1 for transposed convolutions).
    rows, units : ndarray of int64, shape (n,)
        Filter ``rows[i]`` belongs to channel ``units[i]`` of the set.
    """

    module: str
    parameter: str
    dim: int
    rows: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class CoupledSet:
    """Channels that several layers make together.

    Attributes
    ----------
    classes : ndarray of int64, shape (size,)
        Class of each channel of the set in the channel map.
    members : tuple of Member
        The layers, in the order of the model.
    parts : ndarray of int64, shape (size,), or None
        Part of each channel; every part must lose as many. None: no groups to balance.
    reason : str or None
        Why the set cannot be pruned; None when it can.
    """

    classes: np.ndarray
    members: tuple[Member, ...]
    parts: np.ndarray | None
    reason: str | None

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.classes)

    @property
    def name(self) -> str:
        """Name of the first layer, with the number of the others."""
        more = len(self.members) - 1
        return self.members[0].module + (f" (+{more})" if more else "")


@dataclass(frozen=True)
class Coupling:
    """All coupled sets of a model.

    Attributes
    ----------
    graph, channels
        The traced model and its channel map.
    sets : tuple of CoupledSet
        In the order of the model.
    groups : dict of str to int
        Weight of a convolution -> in how many groups masks given leave each that it has.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    >>> coupling = Coupling.trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(s.name, s.size, s.reason) for s in coupling.sets]
    [('0', 8, None), ('1', 4, 'an output of the model')]
    """

    graph: Graph
    channels: ChannelMap
    sets: tuple[CoupledSet, ...]
    groups: dict[str, int] = field(default_factory=dict)

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        dummy_input: Any = None,
        *,
        tie: Iterable[tuple[str, str]] = (),
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        graph: Graph | None = None,
        pin: Iterable[tuple[Node, str]] = (),
    ) -> Coupling:
        """Trace a model and find its coupled sets.

        Parameters
        ----------
        model : nn.Module
            The unwrapped model; left as it was found.
        dummy_input : Tensor, tuple, dict or None
            Example arguments; None tries common image sizes.
        tie : iterable of (str, str)
            Names of weights whose filters shall go together in addition.
        masks : mapping, optional
            NNI's masks that hold already. Convolutions they make group convolutions of have to
            keep groups of one width.
        graph : Graph, optional
            The model as it has been traced already.
        pin : iterable of (Node, str)
            Operators of `graph` whose inputs must keep their width, with the reason.
        """
        if graph is None:
            graph = trace(model, example_input(model) if dummy_input is None else dummy_input)
        channels = map_channels(graph, tie=tie, pin=pin, sizes_agree=True)
        kept = read_masks(model, masks or {}, graph.aliases)
        grouped = find_grouped(graph, channels, Wiring(graph, kept))
        added = balances(channels, grouped)
        found = _find_sets(graph, replace(channels, balances=(*channels.balances, *added)))
        return replace(found, groups={x.weight: x.groups.num_groups // x.had for x in grouped})

    def masks(self, removed: np.ndarray) -> dict[str, dict[str, Tensor]]:
        """Write NNI masks that zero classes: filters, biases, and the norms behind them.

        Parameters
        ----------
        removed : ndarray of bool, shape (classes,)
            The classes to zero.

        Returns
        -------
        dict of str to dict of str to Tensor
            ``{module: {target: float 0/1 tensor}}`` for every tensor that acts on channels,
            all-ones where nothing goes.
        """
        masks: dict[str, dict[str, Tensor]] = {}
        for axis in self.channels.axes.values():
            if axis.role not in ("row", "bias", "scale"):
                continue
            stays = torch.from_numpy(~removed[self.channels.of(axis.labels)])
            for name in self.graph.aliases[axis.tensor]:
                tensor = self.graph.lookup(name)
                mask = place(stays.to(torch.float32), tensor.dim(), axis.dim)
                mask = mask.expand(tensor.shape).clone()
                module, _, target = name.rpartition(".")
                targets = masks.setdefault(module, {})
                # A parameter may carry channels on several of its axes.
                targets[target] = targets[target] * mask if target in targets else mask
        return masks

    def empty(self) -> np.ndarray:
        """Return ``removed`` with nothing removed."""
        return np.zeros(self.channels.count, dtype=bool)

    def table(self) -> Table:
        """Show the sets: size, layers, and why a set stays."""
        table = Table("set", "channels", "layers", "prunable", title="coupled channels")
        for number, coupled in enumerate(self.sets):
            layers = ", ".join(dict.fromkeys(m.module for m in coupled.members))
            table.add_row(str(number), str(coupled.size), layers, coupled.reason or "yes")
        return table


def _find_sets(graph: Graph, channels: ChannelMap) -> Coupling:
    axes = [axis for axis in channels.axes.values() if axis.role == "row"]
    balanced = balance_classes(channels, _layers(axes, channels))
    channels = balanced.channels
    sets: dict[tuple[Any, ...], list[tuple[int, _Filters]]] = {}
    for number, filters in _filters(axes, channels).items():
        reason = channels.pinned.get(number) or balanced.problems.get(number)
        key = (reason, int(balanced.links[number]), filters.signature)
        sets.setdefault(key, []).append((number, filters))
    made = []
    for (reason, *_), members in sets.items():
        own = np.array([number for number, _ in members])
        parts = balanced.parts[own] if reason is None and balanced.parts[own[0]] >= 0 else None
        made.append(CoupledSet(own, _members(axes, [f for _, f in members]), parts, reason))
    return Coupling(graph, channels, tuple(made))


@dataclass(frozen=True)
class _Filters:
    """Filters of one class: `rows[i]` of the axis `owners[i]`, in the order of the model."""

    owners: np.ndarray
    rows: np.ndarray

    @property
    def signature(self) -> bytes:
        """Equal for classes that the same layers make with as many filters each."""
        return self.owners.tobytes()


def _filters(axes: Sequence[Axis], channels: ChannelMap) -> dict[int, _Filters]:
    if not axes:
        return {}
    classes = np.concatenate([channels.of(axis.labels) for axis in axes])
    owner = np.concatenate([np.full(axis.labels.numel(), i) for i, axis in enumerate(axes)])
    position = np.concatenate([np.arange(axis.labels.numel()) for axis in axes])
    order = np.lexsort((position, owner, classes))
    classes, owner, position = classes[order], owner[order], position[order]
    first = np.flatnonzero(np.r_[True, classes[1:] != classes[:-1]])
    parts = zip(np.split(owner, first[1:]), np.split(position, first[1:]), strict=True)
    return {
        number: _Filters(*part) for number, part in zip(classes[first].tolist(), parts, strict=True)
    }


def _layers(axes: Sequence[Axis], channels: ChannelMap) -> np.ndarray:
    """Number the sets of layers that make each class; -1 for what cannot be removed."""
    layers = np.full(channels.count, -1)
    known: dict[bytes, int] = {}
    for number, filters in _filters(axes, channels).items():
        if number not in channels.pinned:
            layers[number] = known.setdefault(filters.signature, len(known))
    return layers


def _members(axes: Sequence[Axis], units: Sequence[_Filters]) -> tuple[Member, ...]:
    """Put the filters of all channels of a set together, layer by layer."""
    # Channels are numbered by their first filter, so that ties break the same way everywhere.
    number = np.repeat(np.arange(len(units)), [len(u.owners) for u in units])
    owners, rows = (np.concatenate([getattr(u, n) for u in units]) for n in ("owners", "rows"))
    return tuple(
        Member(
            module=axes[i].tensor.rpartition(".")[0],
            parameter=axes[i].tensor,
            dim=axes[i].dim,
            rows=rows[owners == i],
            units=number[owners == i],
        )
        for i in dict.fromkeys(units[0].owners.tolist())
    )
