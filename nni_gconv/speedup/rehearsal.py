"""A cut tried on a copy before anything is masked, to see whether the forward can do with it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from nni_gconv.graph import ChannelOrder, Coupling, Decision, Graph, Segments, shape_of
from nni_gconv.speedup.cut import apply_plan
from nni_gconv.speedup.literal_widths import written_width
from nni_gconv.speedup.plan import make_plan
from nni_gconv.speedup.residual import sharing_copy


def find_obstacle(
    model: nn.Module,
    dummy_input: Any,
    coupling: Coupling,
    removed: np.ndarray,
    pinned: Container[Node] = (),
) -> Node | None:
    """Find an operator at which a model fails, or cuts elsewhere, without some of its channels.

    Parameters
    ----------
    model : nn.Module
        The dense model; left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments, if with another batch than it was traced with.
    coupling : Coupling
        The traced model.
    removed : ndarray of bool, shape (classes,)
        The channels that a copy does without.
    pinned : container of Node
        Operators that keep their width already: it is not they.

    Returns
    -------
    torch.fx.Node or None
        None: the copy runs.

    Raises
    ------
    SpeedupError
        The copy does not run and no operator is to blame, or its outputs have other shapes.
    """
    graph, channels = coupling.graph, coupling.channels
    order = ChannelOrder(Segments(channels, removed), removed)
    zeros = {read.node: torch.zeros(read.labels.numel()) for read in channels.reads}
    plan = make_plan(graph, channels, {}, Decision(removed, {}, zeros), order)
    small = sharing_copy(model)
    apply_plan(small, graph, plan, {})
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices):
        given = _as_traced(dummy_input, graph)
        return written_width(small, given, graph, channels, removed, pinned)


def _as_traced(dummy_input: Any, graph: Graph) -> tuple[Any, ...] | dict[str, Any]:
    """Return arguments of the shapes that a model was traced with; of another batch, it may be."""
    leaves, structure = pytree.tree_flatten(dummy_input)
    nodes = iter(graph.inputs)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            shape = shape_of(next(nodes))
            if shape and shape != tuple(leaf.shape):
                leaves[place] = leaf.new_zeros(shape)
    made: tuple[Any, ...] | dict[str, Any] = pytree.tree_unflatten(leaves, structure)
    return made
