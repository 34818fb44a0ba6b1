"""Does the small model cut its channels where the dense one does? Seen from the shapes it makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channels import ChannelMap, varying
from nni_gconv.graph.size_origins import watch_sizes
from nni_gconv.graph.trace import Graph, as_inputs, trace
from nni_gconv.modes import evaluating, forward_of_training

__all__ = ["uneven_part"]

Shapes = tuple[tuple[int, ...], ...]


def uneven_part(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap, removed: np.ndarray
) -> Node | None:
    """Find an operator that deals the small model's channels out otherwise than the dense one's.

    ``x.chunk(2, 1)`` halves what there is; ``x.split(32, 1)`` counts on 64 channels and would give
    a smaller model 32 and the rest. The small model is run and the shapes are compared.

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

    Returns
    -------
    torch.fx.Node or None
        The first such operator of the dense graph.
    """
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
