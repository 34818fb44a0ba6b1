"""What each torch operator does to channels: layers with weights, norms, element by element.

An operator without a rule is opaque: the channels it reads keep their width, and the user is told
which operator on which line it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channels import (
    Balance,
    ChannelMap,
    Field,
    Fields,
    NormWidth,
    Read,
    Walker,
    op_name,
    shape_of,
    varying,
)
from nni_gconv.graph.rules import moves, picks  # noqa: F401 - register their rules
from nni_gconv.graph.rules.registry import (
    ELEMENTWISE_PRODUCTS,
    RULES,
    Rule,
    argument,
    is_pointwise,
    merge,
    place,
    rule,
)
from nni_gconv.graph.trace import Graph, location

__all__ = ["map_channels"]


def map_channels(
    graph: Graph,
    *,
    tie: Iterable[tuple[str, str]] = (),
    pin: Iterable[tuple[Node, str]] = (),
) -> ChannelMap:
    """Follow the channels of a traced model.

    Parameters
    ----------
    graph : Graph
        From :func:`nni_gconv.graph.trace.trace`.
    tie : iterable of (str, str)
        Names of weights whose rows shall be removed together although the graph does not ask it.
    pin : iterable of (Node, str)
        Operators whose inputs must keep their width, with the reason.

    Returns
    -------
    ChannelMap

    Examples
    --------
    >>> import torch
    >>> from nni_gconv.graph.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    >>> channels = map_channels(trace(net, torch.zeros(1, 3, 8, 8)))
    >>> rows = channels.axes["0.weight", 0].labels
    >>> columns = channels.axes["1.weight", 1].labels
    >>> bool((channels.of(rows) == channels.of(columns)).all())
    True
    """
    walker = Walker(graph)
    pins = dict(pin)
    for node in graph.all_nodes:
        if node in pins:
            walker.pin_inputs(node, pins[node])
            walker.pinned_nodes.add(node)
        if node.op == "output":
            walker.pin_inputs(node, "an output of the model")
        elif node.op == "call_function":
            walker.values[node] = _rule(node)(walker, node)
        elif node.op != "placeholder":
            walker.values[node] = walker.opaque(node)
    for first, second in tie:
        walker.equal(walker.axis(first, 0, "row"), walker.axis(second, 0, "row"))
    return walker.result()


def _rule(node: Node) -> Rule:
    name = op_name(node)
    if name in RULES:
        return RULES[name]
    if is_pointwise(node):
        return pointwise
    return Walker.opaque


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
def check(walker: Walker, node: Node) -> Fields:
    """What export wrote down for itself: reads no numbers."""
    return ()


@rule("zeros_like", "ones_like", "empty_like", "full_like")
def like(walker: Walker, node: Node) -> Fields:
    """As wide as its argument, whatever that is."""
    return walker.fields(node.args[0])


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def anew(walker: Walker, node: Node) -> Fields:
    """Of the shape that is asked for; only the type is taken from the argument."""
    return ()


# -- layers with weights --------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d")
def convolution(walker: Walker, node: Node) -> Fields:
    """Dense convolutions read all channels, grouped ones a block each, depthwise ones their own."""
    x, weight = node.args[0], node.args[1]
    name = walker.parameter(weight)
    if name is None:
        return walker.opaque(node)
    groups = int(argument(node, 6, "groups", 1))
    filters, per_group = shape_of(weight)[:2]
    rank, dim = len(shape_of(x)), len(shape_of(x)) - len(shape_of(weight)) + 1
    own, rest = walker.channel(x, dim, f"channels mixed with space at {location(node)}")
    for field in rest:
        walker.pin(field, f"channels mixed with space at {location(node)}")
    rows = walker.axis(name, 0, "row")
    if groups == 1:
        columns = walker.axis(name, 1, "column")
        if own is None:
            walker.pin(columns, "an input of the model")
        else:
            walker.equal(own, columns)
            walker.reads.append(Read(node, name, own, 1, transposed=False))
    elif own is None:
        walker.pin(rows, "groups over a tensor of fixed width")
    elif per_group == 1:
        walker.equal(rows, own.repeat_interleave(filters // groups))
    else:
        where = f"groups of {walker.graph.owner(node)}"
        block = torch.arange(groups)
        walker.balances.append(Balance(own, block.repeat_interleave(per_group), where))
        walker.balances.append(Balance(rows, block.repeat_interleave(filters // groups), where))
        walker.reads.append(Read(node, name, own, groups, transposed=False))
    _bias(walker, argument(node, 2, "bias"), rows)
    return (place(rows, rank, dim),)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(walker: Walker, node: Node) -> Fields:
    """As a convolution with the two first axes of the weight exchanged.

    Groups share the weight's second axis: filters at the same place of each group go together.
    """
    x, weight = node.args[0], node.args[1]
    name = walker.parameter(weight)
    if name is None:
        return walker.opaque(node)
    groups = int(argument(node, 6, "groups", 1))
    rank, dim = len(shape_of(x)), len(shape_of(x)) - len(shape_of(weight)) + 1
    own, rest = walker.channel(x, dim, f"channels mixed with space at {location(node)}")
    for field in rest:
        walker.pin(field, f"channels mixed with space at {location(node)}")
    inputs, per_group = shape_of(weight)[:2]
    if own is not None and groups == inputs:
        rows = walker.axis(name, 0, "row")
        walker.equal(rows, own)
        out = rows.repeat_interleave(per_group)
    else:
        columns, rows = walker.axis(name, 0, "column"), walker.axis(name, 1, "row")
        out = rows.repeat(groups)
        if own is None:
            walker.pin(columns, "an input of the model")
        else:
            walker.equal(own, columns)
            walker.reads.append(Read(node, name, own, 1, transposed=True))
            if groups > 1:
                block = torch.arange(groups).repeat_interleave(inputs // groups)
                where = f"groups of {walker.graph.owner(node)}"
                walker.balances.append(Balance(own, block, where))
    _bias(walker, argument(node, 2, "bias"), out)
    return (place(out, rank, dim),)


@rule("linear")
def linear(walker: Walker, node: Node) -> Fields:
    """Read the last dimension; fields along others go through."""
    x, weight = node.args[0], node.args[1]
    name = walker.parameter(weight)
    if name is None:
        return walker.opaque(node)
    rank = len(shape_of(x))
    own, rest = walker.channel(x, -1, f"channels mixed at {location(node)}")
    rows, columns = walker.axis(name, 0, "row"), walker.axis(name, 1, "column")
    if own is None:
        walker.pin(columns, "an input of the model")
    else:
        walker.equal(own, columns)
        walker.reads.append(Read(node, name, own, 1, transposed=False))
    _bias(walker, argument(node, 2, "bias"), rows)
    return (place(rows, rank, rank - 1), *rest)


def _bias(walker: Walker, bias: Any, rows: Tensor) -> None:
    name = walker.parameter(bias)
    if name is not None:
        walker.equal(walker.axis(name, 0, "bias"), rows)


# -- normalisation --------------------------------------------------------------------------------


@rule("batch_norm", "instance_norm")
def channel_norm(walker: Walker, node: Node) -> Fields:
    """Scale, shift and statistics belong to the channel they act on."""
    own, rest = walker.channel(node.args[0], 1, f"channels mixed with space at {location(node)}")
    for tensor, role in zip(node.args[1:5], ("scale", "scale", "stat", "stat"), strict=False):
        name = walker.parameter(tensor)
        if name is not None and own is not None:
            walker.equal(walker.axis(name, 0, role), own)
    if argument(node, 5, "training"):  # of both: statistics of the values themselves
        for field in rest:
            walker.pin(field, f"normalised over channels at {location(node)}")
    _norm_width(walker, node, own)
    return walker.fields(node.args[0])


@rule("group_norm")
def group_norm(walker: Walker, node: Node) -> Fields:
    """The channels that are normalised together go together, as a group fewer."""
    x, groups = node.args[0], int(node.args[1])  # type: ignore[arg-type]
    own, rest = walker.channel(x, 1, f"channels mixed with space at {location(node)}")
    for field in rest:
        if any(d > 1 for d in varying(field)):
            walker.pin(field, f"normalised over channels at {location(node)}")
    if own is None:
        return walker.fields(x)
    for position, key in ((2, "weight"), (3, "bias")):
        name = walker.parameter(argument(node, position, key))
        if name is not None:
            walker.equal(walker.axis(name, 0, "scale"), own)
    module = walker.graph.modules.get(walker.graph.owner(node))
    if groups == 1:
        walker.pin(own, f"normalised over channels at {location(node)}")
    elif isinstance(module, nn.GroupNorm) and module.num_groups == groups:
        parts = own.view(groups, -1)
        walker.equal(parts[:, :1], parts)
    else:
        walker.pin(own, f"the number of groups is written in the forward at {location(node)}")
    _norm_width(walker, node, own)
    return walker.fields(x)


def _norm_width(walker: Walker, node: Node, own: Tensor | None) -> None:
    owner = walker.graph.owner(node)
    module = walker.graph.modules.get(owner)
    if own is not None and isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        walker.norms.append(NormWidth(owner, own))


@rule("layer_norm", "rms_norm")
def layer_norm(walker: Walker, node: Node) -> Fields:
    """Statistics over the trailing dimensions: what varies there keeps its width."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - len(node.args[1])  # type: ignore[arg-type]
    for field in fields:
        if any(d >= first for d in varying(field)):
            walker.pin(field, f"normalised over channels at {location(node)}")
    return fields


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "sort", "topk")
def along_one(walker: Walker, node: Node) -> Fields:
    """Mixes positions along one dimension; fields along others go through."""
    dim = argument(node, 1, "dim", -1)
    if not isinstance(dim, int) or isinstance(node.meta.get("val"), list | tuple):
        return walker.opaque(node)
    fields = walker.fields(node.args[0])
    for field in fields:
        if dim % field.dim() in varying(field):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
    return fields


@rule("prelu", "_prelu_kernel")
def prelu(walker: Walker, node: Node) -> Fields:
    """One slope per channel, or one for all."""
    own, _ = walker.channel(node.args[0], 1, f"channels mixed with space at {location(node)}")
    name = walker.parameter(node.args[1])
    if own is not None and name is not None and shape_of(node.args[1])[0] == own.numel():
        walker.equal(walker.axis(name, 0, "scale"), own)
    return walker.fields(node.args[0])


# -- element by element ---------------------------------------------------------------------------


def pointwise(walker: Walker, node: Node) -> Fields:
    """Tie what meets at one position; a tensor of fixed width holds the others."""
    rank = len(shape_of(node))
    operands = [a for a in _tensor_arguments(node) if shape_of(a)]
    merged: list[Field] = []
    aligned: list[tuple[tuple[int, ...], list[Field]]] = []
    for operand in operands:
        shape = (1,) * (rank - len(shape_of(operand))) + shape_of(operand)
        fields = [
            f.reshape((1,) * (rank - f.dim()) + tuple(f.shape)) for f in walker.fields(operand)
        ]
        aligned.append((shape, fields))
        for field in fields:
            merge(walker, merged, field)
    for operand, (shape, fields) in zip(operands, aligned, strict=True):
        fixed = {d for d in range(rank) if shape[d] > 1 and all(f.shape[d] == 1 for f in fields)}
        for field in merged:
            if fixed & set(varying(field)):
                walker.pin(field, f"meets a tensor of fixed width at {location(node)}")
        added = len(operands) > 1 and op_name(node) not in ELEMENTWISE_PRODUCTS
        if added and walker.parameter(operand):
            for field in fields:
                walker.pin(field, f"a parameter is added to each channel at {location(node)}")
    return tuple(merged)


def _tensor_arguments(node: Node) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return found
