"""Reading traced operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

__all__ = ["op_name", "shape_of"]


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the traced shape of an argument; a number is a scalar."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def op_name(node: Node) -> str:
    """Name of the ATen operator without overload and without the in-place underscore."""
    packet = getattr(node.target, "overloadpacket", None)
    name = (
        packet.__name__
        if packet is not None
        else getattr(node.target, "__name__", str(node.target))
    )
    return name.removesuffix("_") if not name.startswith("_") else name
