"""What is known of values while constants are followed: the state, and how rules write it down.

Unknown is NaN, and a value with nothing known is None; arrays are float64 and broadcast against
the value they speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channel_map import place
from nni_gconv.graph.masks import Wiring
from nni_gconv.graph.recorder import shape_of
from nni_gconv.graph.trace import Graph

Value = Tensor | None


class State:
    """Values worked out so far, and the parameters with their masks."""

    def __init__(
        self, graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None
    ) -> None:
        self.graph = graph
        self.kept = kept
        self.wiring = wiring or Wiring(graph, kept)
        self.values: dict[Any, Any] = {}
        #: What each reading layer, and each place of what mixes channels, is given.
        self.given: dict[Any, Tensor] = {}
        self.added: dict[Node, tuple[Value, ...]] = {}
        #: Value -> the one whose memory it shares, and the one that is the very same tensor.
        self.storage: dict[Any, Any] = {}
        self.same: dict[Any, Any] = {}
        self.sharing: dict[Any, list[Any]] = {}

    def get(self, node: Any) -> Value:
        """Return what is known of an argument."""
        name = self.name(node)
        if name is not None and name in self.kept:
            # Of a parameter that is used as a value only what is masked is certain.
            kept = self.kept[name]
            return torch.zeros(kept.shape, dtype=torch.float64).masked_fill(kept, torch.nan)
        value = self.values.get(node) if isinstance(node, Node) else None
        return None if isinstance(value, list) else value

    def name(self, node: Any) -> str | None:
        """Return the dotted name when an argument is a parameter or buffer itself."""
        if isinstance(node, Node) and node.op == "placeholder":
            return self.graph.tensors.get(node.name)
        return None

    def masked(self, node: Any) -> Tensor:
        """Return a parameter's masked values."""
        found = self.parameter(node)
        return torch.empty(0) if found is None else found[0]

    def parameter(self, node: Any) -> tuple[Tensor, Tensor] | None:
        """Return a parameter's masked values and its mask."""
        name = self.name(node)
        if name is None:
            return None
        tensor = self.graph.lookup(name).detach().to("cpu", torch.float64)
        kept = self.kept.get(name)
        if kept is None:
            return tensor, torch.ones_like(tensor, dtype=torch.bool)
        return tensor * kept, kept


def known(value: Tensor) -> Value:
    """Return the value, or None where nothing of it is known."""
    return None if bool(value.isnan().all()) else value


def channels_of(state: State, node: Any, dim: int) -> Tensor:
    """Return per-channel constants of a value, NaN where unknown or not constant along the rest."""
    shape = shape_of(node)
    value = state.get(node)
    if value is None:
        return torch.full((shape[dim],), torch.nan, dtype=torch.float64)
    rest = [d for d in range(len(shape)) if d != dim % len(shape)]
    return uniform(value, rest).reshape(-1).expand(shape[dim])


def uniform(value: Tensor, dims: Sequence[int]) -> Tensor:
    """Reduce dimensions to one place each: the value that all of them hold, or NaN."""
    dims = [d for d in dims if value.shape[d] > 1]
    if not dims:
        return value
    low = value.amin(dims, keepdim=True)
    return torch.where(low == value.amax(dims, keepdim=True), low, torch.nan)


def per_channel(rows: Tensor, rank: int, dim: int) -> Value:
    """Write down one number per channel for a value of `rank` dimensions."""
    return known(place(rows, rank, dim))


def moved(node: Node, value: Tensor) -> Any:
    """Run an operator that only moves data on what is known of its argument."""
    full = value.expand(shape_of(node.args[0])).contiguous()
    result = functional(node)(full, *node.args[1:], **node.kwargs)
    several = isinstance(result, list | tuple)
    return [known(squash(r)) for r in result] if several else known(squash(result))


def squash(value: Tensor) -> Tensor:
    """Drop dimensions along which nothing changes to size 1; NaN equals NaN."""
    for dim in range(value.dim()):
        head = value.narrow(dim, 0, 1)
        if bool(((value == head) | (value.isnan() & head.isnan())).all()):
            value = head
    return value


def functional(node: Node) -> Callable[..., Any]:
    """Return the operator that makes a new value in place of the one that overwrites."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet is None or not packet.__name__.endswith("_"):
        return target
    free = getattr(torch.ops.aten, packet.__name__.removesuffix("_"))
    return getattr(free, target._overloadname, free)
