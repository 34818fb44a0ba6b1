"""Who reads whom inside a layer, as far as masks leave connections."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nni_gconv.graph.channels import lookup
from nni_gconv.graph.trace import Graph

__all__ = ["Wiring"]


class Wiring:
    """Which input position of a layer reaches which of its filters, worked out once a weight.

    Parameters
    ----------
    graph : Graph
        The traced model.
    kept : mapping of str to bool Tensor
        Masks by parameter name.
    """

    def __init__(self, graph: Graph, kept: Mapping[str, Tensor]) -> None:
        self._graph, self._kept = graph, kept
        self._made: dict[str, Tensor] = {}

    def masked(self, weight: str) -> bool:
        """Tell whether a weight has a mask that is not all ones."""
        return weight in self._kept

    def of(self, weight: str, transposed: bool = False) -> Tensor:
        """Return a bool Tensor of shape (filters, positions)."""
        if weight not in self._made:
            kept = self._kept.get(weight)
            if kept is None:
                shape = lookup(self._graph, weight).shape[:2]
                self._made[weight] = torch.ones(shape, dtype=torch.bool)
            else:
                # NumPy is several times faster than torch at short rows of bools.
                flat = kept if kept.dim() == 2 else kept.flatten(2)
                made = flat.numpy() if flat.dim() == 2 else flat.numpy().any(2)
                self._made[weight] = torch.from_numpy(made)
        return self._made[weight].T if transposed else self._made[weight]
