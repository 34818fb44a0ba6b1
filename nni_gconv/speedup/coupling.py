"""Coupled sets: which filters of which layers can only be pruned together.

Classes of channels (see :mod:`nni_gconv.speedup.channels`) that touch the same layers form one
set: the inner channels of a bottleneck, the stream of a stage of a residual network, a convolution
with the depthwise one behind it. A pruner ranks the channels of a set against each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from nni_gconv.speedup.channels import ChannelMap, lookup
from nni_gconv.speedup.operators import map_channels
from nni_gconv.speedup.trace import Graph, example_input, trace

__all__ = ["CoupledSet", "Coupling", "Member"]


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
    blocks : ndarray of int64, shape (size,), or None
        Block of each channel; every block must lose as many. None: no groups to balance.
    reason : str or None
        Why the set cannot be pruned; None when it can.
    """

    classes: np.ndarray
    members: tuple[Member, ...]
    blocks: np.ndarray | None
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

    @classmethod
    def trace(
        cls, model: nn.Module, dummy_input: Any = None, *, tie: Iterable[tuple[str, str]] = ()
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
        """
        graph = trace(model, example_input(model) if dummy_input is None else dummy_input)
        channels = map_channels(graph, tie=tie)
        return cls(graph, channels, _sets(graph, channels))

    def masks(self, removed: np.ndarray) -> dict[str, dict[str, Tensor]]:
        """Write NNI masks that silence classes: filters, biases, and the norms behind them.

        Parameters
        ----------
        removed : ndarray of bool, shape (classes,)
            The classes to silence.

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
                tensor = lookup(self.graph, name)
                view = [1] * tensor.dim()
                view[axis.dim] = -1
                mask = stays.to(torch.float32).view(view).expand(tensor.shape).clone()
                module, _, target = name.rpartition(".")
                targets = masks.setdefault(module, {})
                # A parameter may carry channels on several of its axes.
                targets[target] = targets[target] * mask if target in targets else mask
        return masks

    def empty(self) -> np.ndarray:
        """Return ``removed`` with nothing removed."""
        return np.zeros(int(self.channels.classes.max(initial=-1)) + 1, dtype=bool)

    def table(self) -> Table:
        """Show the sets: size, layers, and why a set stays."""
        table = Table("set", "channels", "layers", "prunable", title="coupled channels")
        for number, coupled in enumerate(self.sets):
            layers = ", ".join(dict.fromkeys(m.module for m in coupled.members))
            table.add_row(str(number), str(coupled.size), layers, coupled.reason or "yes")
        return table


def _sets(graph: Graph, channels: ChannelMap) -> tuple[CoupledSet, ...]:
    axes = [axis for axis in channels.axes.values() if axis.role == "row"]
    if not axes:
        return ()
    classes = np.concatenate([channels.of(axis.labels) for axis in axes])
    owner = np.concatenate([np.full(axis.labels.numel(), i) for i, axis in enumerate(axes)])
    position = np.concatenate([np.arange(axis.labels.numel()) for axis in axes])
    order = np.lexsort((position, owner, classes))
    classes, owner, position = classes[order], owner[order], position[order]
    first = np.flatnonzero(np.r_[True, classes[1:] != classes[:-1]])
    by_signature: dict[tuple[Any, ...], list[int]] = {}
    for begin, end in zip(first, np.r_[first[1:], len(classes)], strict=True):
        reason = channels.pinned.get(int(classes[begin]))
        key = (reason, *dict.fromkeys(owner[begin:end].tolist()))
        by_signature.setdefault(key, []).append(int(begin))
    ends = dict(zip(first.tolist(), np.r_[first[1:], len(classes)].tolist(), strict=True))
    made = []
    for (reason, *touched), begins in by_signature.items():
        index = np.concatenate([np.arange(b, ends[b]) for b in begins])
        # Channels are numbered by their first filter, so that ties break the same way everywhere.
        units = np.repeat(np.arange(len(begins)), [ends[b] - b for b in begins])
        members = tuple(
            Member(
                module=axes[i].tensor.rpartition(".")[0],
                parameter=axes[i].tensor,
                dim=axes[i].dim,
                rows=position[index[owner[index] == i]],
                units=units[owner[index] == i],
            )
            for i in touched
        )
        own = classes[np.array(begins)]
        blocks, problem = _blocks(channels, own)
        made.append(CoupledSet(own, members, blocks, reason or problem))
    return tuple(made)


def _blocks(channels: ChannelMap, own: np.ndarray) -> tuple[np.ndarray | None, str | None]:
    """Find the blocks in which the channels of a set must stay balanced."""
    joint: np.ndarray | None = None
    for balance in channels.balances:
        of = channels.of(balance.labels)
        inside = np.isin(of, own)
        if not inside.any() or _same_in_each(of, balance.blocks.numpy()):
            continue
        if not inside.all() or len(np.unique(of)) != len(of):
            return None, f"{balance.where} span several sets"
        block = np.empty(len(own), dtype=np.int64)
        block[np.searchsorted(own, of) if _sorted(own) else _positions(own, of)] = balance.blocks
        joint = block if joint is None else _cross(joint, block)
    if joint is not None and len(set(np.bincount(joint).tolist())) != 1:
        return None, "groups of different layers cut the channels differently"
    return joint, None


def _same_in_each(of: np.ndarray, blocks: np.ndarray) -> bool:
    """Tell whether every block holds the same channels: such blocks are never out of balance."""
    parts = [np.sort(of[blocks == block]) for block in np.unique(blocks)]
    return all(np.array_equal(parts[0], part) for part in parts[1:])


def _sorted(values: np.ndarray) -> bool:
    return bool((np.diff(values) > 0).all())


def _positions(own: np.ndarray, of: np.ndarray) -> np.ndarray:
    place = {int(c): i for i, c in enumerate(own)}
    return np.array([place[int(c)] for c in of])


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].reshape(-1)
