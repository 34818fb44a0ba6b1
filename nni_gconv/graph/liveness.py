"""Which channels go: those of which nothing can tell.

A class of channels goes when every layer that reads it reads zero or reads it through masked
weights, and it is zero wherever channels are mixed without weights. The decision is repeated until
it settles, since a layer that goes stops reading. Groups stay balanced and nothing becomes empty;
what has to stay for that stays as zeros, which is exact, only not as small as the masks asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channel_map import ChannelMap, Read, place
from nni_gconv.graph.constants import given_values
from nni_gconv.graph.masks import Wiring
from nni_gconv.graph.rules import argument, has_padding
from nni_gconv.graph.trace import Graph

Kept = dict[str, Tensor]


@dataclass(frozen=True)
class Decision:
    """Outcome of :func:`decide`.

    ``removed`` is bool per class, ``held`` says what stayed and why, ``given`` is what is known of
    the channels that layers read.
    """

    removed: np.ndarray
    held: dict[str, int]
    given: dict[Any, Tensor]


def extend_masks(
    graph: Graph, channels: ChannelMap, kept: Kept, wiring: Wiring
) -> tuple[Kept, dict[str, Tensor]]:
    """Extend masks that zero only filters to all that acts behind the filter.

    A class all of whose filters are masked is meant to be gone; its biases and the scale and shift
    of the norms behind it are masked with it.

    Returns
    -------
    kept : dict of str to bool Tensor
        The extended masks.
    added : dict of str to Tensor
        Parameter -> positions that this masked in addition.
    """
    gone = _all_rows_masked(channels, wiring, kept) & ~_pinned(channels)
    extended = dict(kept)
    added: dict[str, Tensor] = {}
    for axis in channels.axes.values():
        if axis.role not in ("bias", "scale"):
            continue
        quiet = torch.from_numpy(gone[channels.of(axis.labels)])
        if not bool(quiet.any()):
            continue
        tensor = graph.lookup(axis.tensor)
        before = extended.get(axis.tensor, torch.ones(tensor.shape, dtype=torch.bool))
        after = before & ~place(quiet, tensor.dim(), axis.dim)
        if not torch.equal(before, after):
            extended[axis.tensor] = after
            added[axis.tensor] = (before & ~after).nonzero()[:, axis.dim].unique()
    return extended, added


def silence_norms(
    graph: Graph, channels: ChannelMap, kept: Kept, removed: np.ndarray
) -> tuple[Kept, dict[str, Tensor]]:
    """Mask the shift of every norm whose scale alone is masked, as NNI's ``SlimPruner`` masks it.

    Classes that can go without (`removed`) and those that must keep their width are left alone.

    Returns
    -------
    kept, added
        As of :func:`extend_masks`.
    """
    left = ~(removed | _pinned(channels))
    extended, added = dict(kept), {}
    for axis in channels.axes.values():
        module, _, target = axis.tensor.rpartition(".")
        shift = graph.aliases.get(f"{module}.bias".lstrip("."), ("",))[0]
        if axis.role != "scale" or target != "weight" or axis.tensor not in kept:
            continue
        if (shift, axis.dim) not in channels.axes:
            continue
        own = torch.from_numpy(left[channels.of(axis.labels)])
        quiet = ~kept[axis.tensor] & place(own, kept[axis.tensor].dim(), axis.dim)
        before = extended.get(shift, torch.ones_like(quiet))
        if bool((before & quiet).any()):
            extended[shift] = before & ~quiet
            added[shift] = (before & quiet).nonzero()[:, axis.dim].unique()
    return extended, added


def _pinned(channels: ChannelMap) -> np.ndarray:
    pinned = np.zeros(channels.count, dtype=bool)
    pinned[list(channels.pinned)] = True
    return pinned


def _all_rows_masked(channels: ChannelMap, wiring: Wiring, kept: Kept) -> np.ndarray:
    """Tell for each class whether it has filters and every one of them is masked whole."""
    has_row, has_live = np.zeros(channels.count, bool), np.zeros(channels.count, bool)
    for axis in channels.axes.values():
        if axis.role != "row":
            continue
        of = channels.of(axis.labels)
        has_row[of] = True
        live = np.ones(len(of), bool)
        if axis.tensor in kept:
            live = wiring.of(axis.tensor).any(1 - axis.dim).numpy()
        has_live[of[live]] = True
    return has_row & ~has_live


def decide(
    graph: Graph, channels: ChannelMap, kept: Kept, wiring: Wiring, *, fold: bool = False
) -> Decision:
    """Find the classes that can go without changing any output.

    Parameters
    ----------
    graph, channels
        The traced model and its channel map.
    kept : dict of str to bool Tensor
        Masks: True where a parameter is kept.
    wiring : Wiring
        Of the same masks.
    fold : bool
        Count a channel with a constant value other than zero as removable where every reader can
        take the constant into its bias exactly.
    """
    pinned = _pinned(channels)
    removed = np.zeros_like(pinned)
    held: dict[str, int] = {}
    # A constant is worth what it is in the masked model, whatever goes of the layers behind it.
    given = given_values(graph, kept, wiring)
    asked, with_rows = _all_rows_masked(channels, wiring, kept), _with_rows(channels)
    while True:
        read, alive = np.zeros_like(pinned), pinned.copy()
        for reading in channels.reads:
            of = channels.of(reading.labels)
            read[of] = True
            needed = _needed(channels, reading, wiring, removed) & (given[reading.node] != 0)
            if fold:
                needed &= ~foldable(graph, channels, reading, given)
            alive[of[needed.numpy()]] = True
        for mix in channels.mixes:
            of = channels.of(mix.labels)
            read[of] = True
            alive[of[(given[mix.key] != 0).numpy()]] = True
        candidates = ~alive & (read | asked) & with_rows
        settled, held = _settle(channels, candidates, removed)
        if np.array_equal(settled, removed):
            return Decision(removed, held, given)
        removed = settled


def _with_rows(channels: ChannelMap) -> np.ndarray:
    found = np.zeros(channels.count, bool)
    for axis in channels.axes.values():
        if axis.role == "row":
            found[channels.of(axis.labels)] = True
    return found


def _needed(channels: ChannelMap, reading: Read, wiring: Wiring, removed: np.ndarray) -> Tensor:
    """Tell for each channel a layer reads whether it reaches a filter that stays: bool."""
    connected = wiring.of(reading.weight, reading.transposed)
    if reading.computed:
        connected = torch.ones_like(connected)
    rows = channels.axes.get((reading.weight, 1 if reading.transposed else 0))
    if rows is not None:
        # A filter that goes reads no more; what only it reads can go with it.
        stays = torch.from_numpy(~removed[channels.of(rows.labels)])
        connected = connected & stays[:, None]
    if reading.groups > 1:
        return connected.view(reading.groups, -1, connected.shape[1]).any(1).reshape(-1)
    return connected.any(0)


def _settle(
    channels: ChannelMap, candidates: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Keep as many in every part of a balance and at least one on every axis.

    What was removed `before` stays removed: it is balanced as it is, and the search must not turn
    in circles.
    """
    removed = candidates | before
    held: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for name, labels in _never_empty(channels):
            of = channels.of(labels)
            if len(of) and bool(removed[of].all()):
                removed[of[~before[of]][0]] = False
                held[f"{name}: one channel stays, none would be left"] = 1
                changed = True
        # Small parts first: what they hold back is often all that larger ones ask for.
        for balance in sorted(channels.balances, key=lambda b: -int(b.parts.max())):
            of = channels.of(balance.labels)
            parts = balance.parts.numpy()
            counts = np.bincount(parts, weights=~removed[of]).astype(int)
            for part in np.flatnonzero(counts < counts.max()):
                # The last channels that would go stay, as zeros, so that parts are equally wide.
                missing = counts.max() - int((~removed[of[parts == part]]).sum())
                if missing <= 0:  # came back with channels of another part
                    continue
                gone = of[(parts == part) & removed[of] & ~before[of]]
                classes, times = np.unique(gone, return_counts=True)
                filled = np.cumsum(times[::-1]) >= missing
                back = classes[::-1][: int(filled.argmax()) + 1]
                removed[back] = False
                key = f"{balance.where}: channels stay so that groups are equally wide"
                held[key] = held.get(key, 0) + len(back)
                changed = True
    return removed, held


def _never_empty(channels: ChannelMap) -> Iterator[tuple[str, Tensor]]:
    """List what has to keep a channel: axes of tensors, and parts that an attribute counts."""
    for axis in channels.axes.values():
        yield axis.tensor, axis.labels
    for use in channels.sizes:
        yield str(use.total), use.labels


# -- constants that a reader's bias can take -------------------------------------------------------


def foldable(
    graph: Graph, channels: ChannelMap, reading: Read, given: Mapping[Node, Tensor]
) -> Tensor:
    """Tell for each channel a layer reads whether its bias can take what the channel gives.

    Zero padding shows the border of a constant, a transposed convolution overlaps unevenly, and a
    layer that is called twice has one bias for both calls: there only zero can go.

    Returns
    -------
    Tensor of bool, shape (channels,)
    """
    known = ~given[reading.node].isnan()
    layer = bias_owner(graph, reading)
    padded = "conv" in str(reading.node.target) and has_padding(reading.node)
    if layer is None or padded or reading.groups > 1 or reading.transposed:
        return torch.zeros_like(known)
    module = graph.modules[layer]
    for other in channels.reads:
        if other.node is not reading.node and graph.caller(other.node) is module:
            known = known & (given[other.node] == given[reading.node])
    return known


def bias_owner(graph: Graph, reading: Read) -> str | None:
    """Return the module whose bias the reading layer adds, if there is one of its own."""
    name, module = graph.owner(reading.node), graph.caller(reading.node)
    if reading.computed or not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return None
    if f"{name}.weight".lstrip(".") not in graph.aliases[reading.weight]:
        return None
    bias = argument(reading.node, 2, "bias")
    if bias is None or module.bias is None:
        return name if bias is None and module.bias is None else None
    aliases = graph.aliases.get(graph.tensors.get(bias.name, ""), ())
    owners = {id(graph.modules[alias.rpartition(".")[0]]) for alias in aliases}
    return name if owners == {id(module)} else None
