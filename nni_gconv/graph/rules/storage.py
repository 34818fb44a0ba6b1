"""Views and in-place writes: which values of a graph share memory."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from nni_gconv.graph.recorder import op_name
from nni_gconv.graph.rules.reshape import PASSES


def follow_storage(
    node: Node,
    values: dict[Any, Any],
    storage: dict[Any, Any],
    same: dict[Any, Any],
    sharing: dict[Any, list[Any]],
) -> None:
    """Note which values share memory, and renew them all when one is written in place.

    Parameters
    ----------
    node : torch.fx.Node
        An operator whose own value has just been worked out.
    values : dict
        What is known of each node's value; changed in place.
    storage, same : dict
        Node -> the one whose memory it shares, and the one that is the very same tensor; a node
        that is absent stands for itself. Changed in place.
    sharing : dict
        Node -> all others that share its memory. Changed in place.
    """
    schema = getattr(node.target, "_schema", None)
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    arguments = schema.arguments if schema is not None else []
    shares = any(a.alias_info is not None for a in arguments)
    if source is not None and (shares or op_name(node) in PASSES or op_name(node) == "getitem"):
        storage[node] = storage.get(source, source)
        sharing.setdefault(storage[node], []).append(node)
        if written_by(node) or op_name(node) in PASSES:
            same[node] = same.get(source, source)
    for target in written_by(node):
        memory, tensor = storage.get(target, target), same.get(target, target)
        renewed = values.get(node)
        for other in (memory, *sharing.get(memory, ())):
            # Part of it was written, or it is a part of what was: not known any more.
            whole = same.get(other, other) is tensor
            values[other] = renewed if whole else None


def written_by(node: Node) -> list[Any]:
    """Return the arguments that an operator writes to."""
    schema = getattr(node.target, "_schema", None)
    found = []
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if position < len(node.args):
                found.append(node.args[position])
            elif argument.name in node.kwargs:
                found.append(node.kwargs[argument.name])
    return found
