"""Views and in-place writes: which values of a graph share memory."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from nni_gconv.speedup.channels import op_name
from nni_gconv.speedup.rules import PASSES

__all__ = ["follow_storage"]


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
    written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    shares = any(a.alias_info is not None for a in arguments)
    if source is not None and (shares or op_name(node) in PASSES or op_name(node) == "getitem"):
        storage[node] = storage.get(source, source)
        sharing.setdefault(storage[node], []).append(node)
        if any(written) or op_name(node) in PASSES:
            same[node] = same.get(source, source)
    given = [x for x, w in zip(node.args, written, strict=False) if w]
    given += [
        node.kwargs[a.name]
        for a, w in zip(arguments, written, strict=True)
        if w and a.name in node.kwargs
    ]
    for target in given:
        memory, tensor = storage.get(target, target), same.get(target, target)
        renewed = values.get(node)
        for other in (memory, *sharing.get(memory, ())):
            # Part of it was written, or it is a part of what was: not known any more.
            whole = same.get(other, other) is tensor
            values[other] = renewed if whole else None
