"""A model, its trace and its masks without the residual blocks that add nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nni_gconv.errors import TraceError
from nni_gconv.graph.branches import vanishing
from nni_gconv.graph.constants import known_operands
from nni_gconv.graph.liveness import silence
from nni_gconv.graph.propagate import map_channels
from nni_gconv.graph.trace import Graph, trace
from nni_gconv.graph.wiring import Wiring
from nni_gconv.speedup.residual import take_out
from nni_gconv.speedup.verify import sharing_copy

__all__ = ["Thinned", "without_dead_blocks"]


@dataclass(frozen=True)
class Thinned:
    """What is left of a traced and masked model.

    Attributes
    ----------
    graph : Graph
        Of what is left.
    masks : dict of str to bool Tensor
        Of the parameters that are left.
    blocks : dict of str to tuple of str
        Block that is exchanged -> what is left of it, see
        :func:`nni_gconv.speedup.residual.take_out`.
    gone : dict of str to bool Tensor
        Masks of the parameters that went with those blocks.
    """

    graph: Graph
    masks: dict[str, Tensor]
    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    gone: dict[str, Tensor] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What went, one line each."""
        return tuple(
            f"{block}: its branch is masked, what is left is {', '.join(steps) or 'its input'}"
            for block, steps in self.blocks.items()
        )

    def copy_of(self, model: nn.Module) -> nn.Module:
        """Copy a model without those blocks; the copy shares its weights."""
        made = sharing_copy(model)
        self.thin(made)
        return made

    def thin(self, model: nn.Module) -> None:
        """Exchange those blocks of a model, in place."""
        for block, steps in self.blocks.items():
            take_out(model, block, steps)


def without_dead_blocks(
    model: nn.Module,
    dummy_input: Any,
    graph: Graph,
    masks: Mapping[str, Tensor],
    *,
    silently: bool,
) -> Thinned:
    """Find the residual blocks whose branch is masked, and trace a copy without them.

    Parameters
    ----------
    model, dummy_input
        The model that was traced; left as it was found.
    graph, masks
        Its trace, and bool masks by parameter name.
    silently : bool
        Norms behind masked filters are masked with them.

    Returns
    -------
    Thinned
        The model as it is where there is no such block, or where the rest does not run without.
    """
    whole = Thinned(graph, dict(masks))
    if all(bool(mask.any()) for mask in masks.values()):
        return whole  # saves following what is known through the network
    kept = dict(masks)
    if silently:
        kept, _ = silence(graph, map_channels(graph), kept, Wiring(graph, kept))
    blocks = vanishing(graph, known_operands(graph, kept))
    if not blocks:
        return whole
    try:
        found = trace(Thinned(graph, {}, blocks).copy_of(model), dummy_input)
    except TraceError:  # a forward that asks more of its blocks than to be called
        return whole
    left = {
        found.aliases[alias][0]: mask
        for name, mask in masks.items()
        for alias in graph.aliases[name]
        if alias in found.aliases
    }
    gone = {
        name: mask
        for name, mask in kept.items()
        if not any(alias in found.aliases for alias in graph.aliases[name])
    }
    return Thinned(found, left, blocks, gone)
