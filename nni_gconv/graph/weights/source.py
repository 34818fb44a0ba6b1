"""Layers that run with other weights than their own, and what parameters those are made from."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from nni_gconv.graph.recorder import op_name, shape_of

_LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})


def weight_source(graph: Any, weight: Any) -> str | None:
    """Name the parameter whose rows and columns are those of a weight that is computed.

    Parameters
    ----------
    graph : Graph
        The traced model.
    weight : Node
        What a convolution or linear layer takes as its weight.

    Returns
    -------
    str or None
        The parameter itself where nothing is computed; None where the weight depends on the input
        or no parameter has its shape. Of several the one that is called a weight.

    Examples
    --------
    >>> import torch
    >>> from nni_gconv.graph.trace import trace
    >>> class Half(torch.nn.Linear):
    ...     def forward(self, x):
    ...         return torch.nn.functional.linear(x, self.weight * 0.5, self.bias)
    >>> graph = trace(Half(3, 2), torch.zeros(1, 3))
    >>> layer = next(n for n in graph.nodes if op_name(n) == "linear")
    >>> weight_source(graph, layer.args[1])
    'weight'
    """
    found: dict[str, None] = {}
    waiting, seen = [weight], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            name = graph.tensors.get(node.name)
            if name is None and node not in graph.constants:
                return None  # an input of the model
            if name is not None and shape_of(node) == shape_of(weight):
                found[name] = None
        waiting += node.all_input_nodes
    learnt = [name for name in found if name not in graph.buffers]
    return next((n for n in learnt if n.rpartition(".")[2] == "weight"), next(iter(learnt), None))


def computed_weights(graph: Any) -> dict[Node, str]:
    """List the weights of layers that are computed, and what of (:func:`weight_source`)."""
    found = {}
    for node in graph.all_nodes:
        if node.op == "call_function" and op_name(node) in _LAYERS:
            weight = node.args[1]
            source = weight_source(graph, weight) if weight.op == "call_function" else None
            if source is not None:
                found[weight] = source
    return found
