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

from nni_gconv.graph.channels import lookup, shape_of
from nni_gconv.graph.rules.registry import place
from nni_gconv.graph.trace import Graph
from nni_gconv.graph.wiring import Wiring

__all__ = ["RULES", "State", "Value", "along", "channels_of", "known", "known_rule", "uniform"]

Value = Tensor | None
Rule = Callable[["State", Node], Any]
RULES: dict[str, Rule] = {}


def known_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of these names."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return add


class State:
    """Values worked out so far, and the parameters with their masks."""

    def __init__(
        self, graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None
    ) -> None:
        self.graph = graph
        self.kept = kept
        self.wiring = wiring or Wiring(graph, kept)
        self.values: dict[Any, Any] = {}
        self.given: dict[Node, Tensor] = {}
        self.added: dict[Node, tuple[Value, ...]] = {}
        #: Value -> the one whose memory it shares, and the one that is the very same tensor.
        self.storage: dict[Any, Any] = {}
        self.same: dict[Any, Any] = {}
        self.sharing: dict[Any, list[Any]] = {}

    def get(self, node: Any) -> Value:
        """Return what is known of an argument."""
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
        tensor = lookup(self.graph, name).detach().to("cpu", torch.float64)
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


def along(rows: Tensor, rank: int, dim: int) -> Value:
    """Write down one number per channel for a value of `rank` dimensions."""
    return known(place(rows, rank, dim))
