"""What a network computes, its numbers left out: networks of the same work take the same time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from nni_gconv.graph import op_name, trace

#: Operators with their sizes and memory formats, and the kinds of layers that hold weights.
Work = tuple[tuple[Any, ...], ...]


def work_of(model: nn.Module, dummy_input: Any) -> Work:
    """Describe what a model runs on an input.

    Parameters
    ----------
    model : nn.Module
        Left as it was found.
    dummy_input : Tensor, tuple or dict
        What it is called on.

    Returns
    -------
    Work
        Equal for two models exactly where they run the same operators in the same order on values
        of the same shapes and formats.

    Examples
    --------
    >>> import torch
    >>> one, other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
    >>> x = torch.zeros(1, 4, 6, 6)
    >>> work_of(one, x) == work_of(nn.Conv2d(4, 4, 3), x), work_of(one, x) == work_of(other, x)
    (True, False)
    """
    graph = trace(model, dummy_input)
    place = {node: number for number, node in enumerate(graph.nodes)}

    def seen(value: Any) -> Any:
        return place[value] if isinstance(value, Node) else str(value)

    operators = []
    for node in graph.nodes:
        given = [seen(leaf) for leaf in pytree.tree_leaves((node.args, node.kwargs))]
        made = [_format(t) for t in pytree.tree_leaves(node.meta.get("val"))]
        operators.append((op_name(node), *given, *made))
    # A packed convolution is traced as a plain one; weights may be read in another format.
    layers = [
        (type(module).__name__, *map(_format, own))
        for module in model.modules()
        if (own := list(module.parameters(recurse=False)))
    ]
    return (*operators, *layers)


def _format(value: Any) -> Any:
    return (tuple(value.shape), value.stride(), str(value.dtype)) if (
        isinstance(value, Tensor)
    ) else str(value)  # fmt: skip
