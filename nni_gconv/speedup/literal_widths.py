"""Widths that are written in a forward: where a smaller model fails, or cuts its parts elsewhere.

``x.view(-1, 64, 4, 4)`` fails once there are fewer channels; ``x.split(32, 1)`` counts on 64 of
them and would give a smaller model 32 and the rest. Both are found by running the small model once.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.errors import SpeedupError
from nni_gconv.graph import (
    ChannelMap,
    Graph,
    as_inputs,
    module_calls,
    shape_of,
    trace,
    varying,
    watch_sizes,
)
from nni_gconv.modes import evaluating, forward_of_training

#: A forward that holds this many different literal widths is not worth another attempt.
MOST_WIDTHS = 32

Shapes = tuple[tuple[int, ...], ...]


def written_width(
    small: nn.Module,
    dummy_input: Any,
    graph: Graph,
    channels: ChannelMap,
    removed: np.ndarray,
    pinned: Container[Node] = (),
) -> Node | None:
    """Find an operator of the dense graph at which a width is written in the forward.

    Parameters
    ----------
    small : nn.Module
        The model after the cut.
    dummy_input : Tensor, tuple or dict
        What the dense model was traced with.
    graph, channels
        Of the dense model.
    removed : ndarray of bool, shape (classes,)
        Classes that went.
    pinned : container of Node
        Operators that keep their width already: it is not they.

    Returns
    -------
    torch.fx.Node or None

    Raises
    ------
    SpeedupError
        The small model does not run and no operator is to blame, or its outputs have other shapes.
    """
    failed = _fails_at(small, dummy_input, graph, pinned)
    if failed is None and channels.halvings:
        return _uneven_part(small, dummy_input, graph, channels, removed)
    return failed


def _fails_at(
    small: nn.Module, dummy_input: Any, graph: Graph, pinned: Container[Node]
) -> Node | None:
    """Run the small model; if it fails at a literal width, return the operator to pin."""
    args, kwargs = as_inputs(dummy_input)
    forwards: list[tuple[Any, tuple[Node, ...]]] = [
        (evaluating, graph.nodes),
        (forward_of_training, graph.training),
    ]
    for mode, nodes in forwards if graph.training else forwards[:1]:
        try:
            with mode(small), torch.no_grad(), module_calls(small) as running:
                result = small(*args, **kwargs)
        except Exception as error:
            node = _culprit(graph, pinned, running)
            if node is None:
                raise SpeedupError(f"the small model does not run: {_one_line(error)}") from error
            return node
        got = [tuple(x.shape) for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        dense = [shape_of(n) for n in pytree.tree_leaves(nodes[-1].args) if shape_of(n)]
        if [s for s in got if s] != dense:
            raise SpeedupError(
                f"the small model's outputs would have other shapes, {got} and not {dense}: "
                "the forward depends on the width of a layer"
            )
    return None


def _culprit(graph: Graph, pinned: Container[Node], running: list[str]) -> Node | None:
    """Find the traced operator at which the small model's forward just failed."""
    walk = sys.exc_info()[2]
    lines = []
    while walk is not None:
        file = walk.tb_frame.f_code.co_filename
        if not compat.is_torch_file(file) and file != __file__:
            lines.append((file, walk.tb_lineno, walk.tb_frame.f_code.co_name))
        walk = walk.tb_next
    free = [n for n in graph.all_nodes if n.op == "call_function" and n not in pinned]
    inside = [n for n in free if running and graph.owner(n) == running[-1]]
    for place in reversed(lines):
        for nodes in (inside, free):
            for node in nodes:
                frames = node.meta.get("frames", ())
                if place[:2] in {(file, line) for file, line, _ in frames}:
                    return node
    for file, line, function in reversed(lines):  # a check between operators: the next one reads it
        for node in free:
            if any(f == file and n > line and of == function for f, n, of in node.meta["frames"]):
                return node
    return inside[0] if inside else None


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- equal parts -----------------------------------------------------------------------------------


def _uneven_part(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap, removed: np.ndarray
) -> Node | None:
    """Find the first operator that deals the channels out otherwise than in the dense model."""
    now = _shapes_of_run(small, dummy_input, graph, channels)
    if now is None:
        now = _shapes_of_trace(small, dummy_input, graph, channels)
    if now is None:
        return channels.halvings[0]
    for node in channels.halvings:
        if tuple(_expected(node, channels, removed)) != now[node]:
            return node
    return None


def _expected(node: Node, channels: ChannelMap, removed: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Shapes of an operator's results without the channels that went."""
    value, fields = node.meta["val"], channels.values[node]
    if isinstance(value, Tensor):
        value, fields = [value], [fields]
    for part, of_part in zip(value, fields, strict=True):
        shape = list(part.shape)
        for field in of_part:
            if len(along := varying(field)) == 1:
                shape[along[0]] = int((~removed[channels.of(field.reshape(-1))]).sum())
        yield tuple(shape)


def _shapes_of_run(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap
) -> dict[Node, Shapes] | None:
    """Run the small model once; None if its calls cannot be told from each other."""
    args, kwargs = as_inputs(dummy_input)
    found: dict[Node, Shapes] = {}
    forwards = ((evaluating, graph.nodes), (forward_of_training, graph.training))
    for (mode, nodes), names in zip(forwards, graph.calls, strict=True):
        own = [node for node in channels.halvings if node in set(nodes)]
        if not own:
            continue
        if any(node not in graph.called for node in own):
            return None
        try:
            with mode(small), torch.no_grad(), watch_sizes(small) as log:  # type: ignore[operator]
                small(*args, **kwargs)
        except Exception:  # perhaps a forward that does not take such integers
            return None
        if tuple(call.name for call in log.calls) != names:
            return None
        found.update({node: log.calls[graph.called[node].index].shapes for node in own})
    return found


def _shapes_of_trace(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap
) -> dict[Node, Shapes] | None:
    """Trace the small model; None if it has not the same operators in the same order."""
    # Others may come and go with the widths: copies that a single channel does not need, say.
    kinds = {n.target for n in channels.halvings}
    dense = [n for n in graph.all_nodes if n.target in kinds]
    now = [n for n in trace(small, dummy_input).all_nodes if n.target in kinds]
    if len(dense) != len(now):
        return None
    found = {}
    for node, other in zip(dense, now, strict=True):
        value = other.meta["val"]
        found[node] = tuple(
            tuple(part.shape) for part in ([value] if isinstance(value, Tensor) else value)
        )
    return found
