"""Channels picked by an index that a buffer holds: permutations, and channels read twice.

The picked channels are followed, and the buffer is written anew for the positions that are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from nni_gconv.graph.channel_map import ChannelMap, Fields, Pick, place
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import channel_rule, constant_rule
from nni_gconv.graph.rules.state import State, Value, known
from nni_gconv.graph.segments import ChannelOrder
from nni_gconv.graph.trace import Graph, location

#: What gives a tensor another name and nothing else.
_NAMES = frozenset({"alias", "detach", "clone", "contiguous"})


@channel_rule("index_select", "index")
def pick(walker: Walker, node: Node) -> Fields:
    """The picked channels, if a buffer says which; others go through."""
    dim, index = _where(node)
    if index is None or len(shape_of(index)) != 1:
        return walker.opaque(node)
    own, rest = walker.channel(node.args[0], dim, f"channels mixed with space at {location(node)}")
    if own is None:
        return rest
    name = walker.parameter(_as_held(index))
    if name is None or name not in walker.graph.buffers or not walker.graph.is_saved(name):
        return walker.opaque(node)
    values = walker.graph.lookup(name).cpu()
    if values.dtype not in (torch.int32, torch.int64):
        return walker.opaque(node)
    for other in walker.picks:  # one buffer for both: what it picks from has to stay alike
        if other.tensor == name and other.source.shape == own.shape:
            walker.equal(other.source, own)
        elif other.tensor == name:
            walker.pin(torch.cat([own, other.source]), f"one index for two at {location(node)}")
    picked = own[values.long()]
    walker.picks.append(Pick(name, own, picked))
    return (place(picked, len(shape_of(node)), dim % len(shape_of(node))), *rest)


@constant_rule("index_select", "index")
def pick_constants(state: State, node: Node) -> Value:
    """What is known of the picked channels."""
    dim, index = _where(node)
    value, name = state.get(node.args[0]), state.name(_as_held(index))
    if value is None or name is None or value.shape[dim] == 1:
        return value if name is not None else None
    return known(value.index_select(dim, state.graph.lookup(name).cpu().long() % value.shape[dim]))


def _where(node: Node) -> tuple[int, Any]:
    """Return the dimension that is picked from and the index; None when there are several."""
    if op_name(node) == "index_select":
        return int(node.args[1]), node.args[2]  # type: ignore[arg-type]
    given = [(d, i) for d, i in enumerate(node.args[1]) if i is not None]  # type: ignore[arg-type]
    return given[0] if len(given) == 1 else (0, None)


def _as_held(index: Any) -> Any:
    """Return the buffer itself of which an index is another name."""
    while isinstance(index, Node) and op_name(index) in _NAMES:
        index = index.args[0]
    return index


# -- the small model's indices ---------------------------------------------------------------------


def new_indices(graph: Graph, channels: ChannelMap, order: ChannelOrder) -> dict[str, list[int]]:
    """Find for each buffer that picks channels what it has to hold in the small model."""
    found = {}
    for entry in channels.picks:
        stays = order.positions(channels.of(entry.source))
        place_of = np.full(entry.source.numel(), -1)
        place_of[stays] = np.arange(len(stays))
        old = graph.lookup(entry.tensor).cpu().numpy() % len(place_of)
        new = place_of[old[order.positions(channels.of(entry.picked))]]
        if not np.array_equal(new, old):
            found[entry.tensor] = new.tolist()
    return found


def write_indices(
    modules: dict[str, nn.Module], graph: Graph, indices: dict[str, list[int]]
) -> None:
    """Give buffers their new indices, under all their names."""
    for name, values in indices.items():
        old = graph.lookup(name)
        new = torch.tensor(values, dtype=old.dtype, device=old.device)
        for alias in graph.aliases[name]:
            path, _, attribute = alias.rpartition(".")
            modules[path]._buffers[attribute] = new
