"""Concatenation, stacks and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Node

from nni_gconv.graph.channel_map import Field, Fields, PadEdit, place, varying
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule, merge
from nni_gconv.graph.rules.state import State, Value, known, moved, squash
from nni_gconv.graph.trace import location

#: Concatenations, and of those that take no dimension the one that they mean.
_CATS: dict[str, int | None] = {
    **dict.fromkeys(("cat", "concat", "concatenate")),
    "hstack": 1,
    "vstack": 0,
    "dstack": 2,
}


def _parts(node: Node) -> tuple[list[Any], int]:
    """Return what is concatenated and along which dimension."""
    meant = _CATS[op_name(node)]
    dim = argument(node, 1, "dim", 0) if meant is None else meant
    return list(node.args[0]), int(dim) % len(shape_of(node))  # type: ignore[arg-type]


@channel_rule(*_CATS)
def concatenate(walker: Walker, node: Node) -> Fields:
    """Along the channels the labels are concatenated; along others the inputs are tied."""
    parts, dim = _parts(node)
    if any(len(shape_of(part)) != len(shape_of(node)) for part in parts):
        return walker.opaque(node)
    reason = f"channels mixed with space at {location(node)}"
    split = [walker.channel(part, dim, reason) for part in parts]
    merged: list[Field] = []
    for _, rest in split:
        for field in rest:
            merge(walker, merged, field)
    for field in merged:
        along = set(varying(field))
        if not all(any(along & set(varying(f)) for f in rest) for _, rest in split):
            walker.pin(field, f"beside a tensor of fixed width at {location(node)}")
    if all(own is None for own, _ in split):
        return tuple(merged)
    labels = []
    for part, (own, _) in zip(parts, split, strict=True):
        if own is not None:
            labels.append(own)
            continue
        labels.append(walker.fresh(shape_of(part)[dim]))
        walker.pin(labels[-1], f"concatenated with a tensor of fixed width at {location(node)}")
    return (place(torch.cat(labels), len(shape_of(node)), dim), *merged)


@constant_rule(*_CATS)
def concatenate_constants(state: State, node: Node) -> Value:
    """Concatenate what is known of each part, along channels as along space."""
    parts, dim = _parts(node)
    return _joined(state, node, dim, [(state.get(p), shape_of(p)[dim]) for p in parts])


def _joined(state: State, node: Node, dim: int, parts: list[tuple[Value, int]]) -> Value:
    """Put what is known of parts, each so long, one behind the other."""
    rank = len(shape_of(node))
    if all(value is None for value, _ in parts):
        return None
    unknown = torch.full([1] * rank, torch.nan, dtype=torch.float64)
    values = [unknown if value is None else value for value, _ in parts]
    shape = [max(value.shape[d] for value in values) for d in range(rank)]
    long = [
        value.expand(*shape[:dim], length, *shape[dim + 1 :])
        for value, (_, length) in zip(values, parts, strict=True)
    ]
    return known(squash(torch.cat(long, dim)))


@channel_rule("stack")
def stack(walker: Walker, node: Node) -> Fields:
    """Tensors side by side along a new dimension: what meets at one place is tied."""
    parts: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    dim = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    stacked = [[field.unsqueeze(dim) for field in walker.fields(part)] for part in parts]
    merged: list[Field] = []
    for field in (f for fields in stacked for f in fields):
        merge(walker, merged, field)
    for field in merged:
        along = set(varying(field))
        if not all(any(along & set(varying(f)) for f in fields) for fields in stacked):
            walker.pin(field, f"stacked with a tensor of fixed width at {location(node)}")
    return tuple(merged)


@constant_rule("stack")
def stack_constants(state: State, node: Node) -> Value:
    """Stack what is known of each part."""
    parts: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    dim = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    values = [state.get(part) for part in parts]
    return _joined(state, node, dim, [(None if v is None else v.unsqueeze(dim), 1) for v in values])


# -- padding ---------------------------------------------------------------------------------------


@channel_rule("pad", "constant_pad_nd")
def pad(walker: Walker, node: Node) -> Fields:
    """Padding the channels makes new ones that are zero; their number is the module's to change."""
    x, widths = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    rank = len(shape_of(x))
    padded = {rank - 1 - i // 2 for i, width in enumerate(widths) if width}
    fields = []
    for field in walker.fields(x):
        along = set(varying(field))
        if not along & padded:
            fields.append(field)
            continue
        if len(along) > 1:
            walker.pin(field, f"channels padded together with space at {location(node)}")
            continue
        fields.append(_pad_channels(walker, node, field, along.pop(), widths))
    return tuple(fields)


@constant_rule("pad", "constant_pad_nd")
def pad_constants(state: State, node: Node) -> Value:
    """What is padded is known whatever it is padded to."""
    value = state.get(node.args[0])
    if value is None:
        value = torch.full([1] * len(shape_of(node.args[0])), torch.nan, dtype=torch.float64)
    return moved(node, value)


def _pad_channels(walker: Walker, node: Node, field: Field, dim: int, widths: list[int]) -> Field:
    rank = field.dim()
    entry = 2 * (rank - 1 - dim)
    mode = argument(node, 2, "mode", "constant") if op_name(node) == "pad" else "constant"
    if mode != "constant":
        walker.pin(field, f"channels padded with channels at {location(node)}")
    if widths[entry] < 0 or widths[entry + 1] < 0:
        walker.pin(field, f"channels cropped at {location(node)}")
    front = walker.fresh(max(widths[entry], 0))
    back = walker.fresh(max(widths[entry + 1], 0))
    module = walker.graph.caller(node)
    value = argument(node, 3 if op_name(node) == "pad" else 2, "value")
    if (
        mode == "constant"
        and not value
        and isinstance(getattr(module, "padding", None), tuple | list)
        and isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d)
    ):
        for other in walker.pads:  # the module is called again: one width for all calls
            if walker.graph.modules[other.module] is module and other.entry == entry:
                walker.equal(other.front, front)
                walker.equal(other.back, back)
        walker.pads.append(PadEdit(walker.graph.owner(node), entry, front, back))
    else:
        reason = f"the padding of channels is written in the forward at {location(node)}"
        walker.pin(torch.cat([front, back]), reason)
    return place(torch.cat([front, field.reshape(-1), back]), rank, dim)
