"""Layers with weights: convolutions, transposed convolutions and linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channel_map import Balance, Fields, Read, place, varying
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule
from nni_gconv.graph.rules.state import State, Value, channels_of, per_channel
from nni_gconv.graph.trace import location

# -- channels -------------------------------------------------------------------------------------


@channel_rule("conv1d", "conv2d", "conv3d")
def convolution(walker: Walker, node: Node) -> Fields:
    """Dense convolutions read all channels, grouped ones a part each, depthwise ones their own."""
    x, shape = node.args[0], shape_of(node.args[1])
    weight = _weight_of(walker, node)
    if weight is None:
        return _left_whole(walker, node)
    groups, (filters, per_group) = int(argument(node, 6, "groups", 1)), shape[:2]
    rank, dim = len(shape_of(x)), len(shape_of(x)) - len(shape) + 1
    own, rows = walker.channel_alone(x, dim, node), weight.rows
    if groups == 1:
        _read_all(walker, node, own, weight)
    elif own is None:
        walker.pin(rows, "groups over a tensor of fixed width")
    elif per_group == 1:
        walker.equal(rows, own.repeat_interleave(filters // groups))
    else:
        where = f"groups of {walker.graph.owner(node)}"
        group = torch.arange(groups)
        walker.balances.append(Balance(own, group.repeat_interleave(per_group), where))
        walker.balances.append(Balance(rows, group.repeat_interleave(filters // groups), where))
        walker.reads.append(Read(node, weight.name, own, groups, False, weight.computed))
    _bias(walker, argument(node, 2, "bias"), rows)
    return (place(rows, rank, dim),)


@channel_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(walker: Walker, node: Node) -> Fields:
    """As a convolution with the two first axes of the weight exchanged.

    Groups share the weight's second axis: filters at the same place of each group go together.
    """
    x, weight = node.args[0], node.args[1]
    name = walker.parameter(weight)
    if name is None:
        return _left_whole(walker, node)
    groups = int(argument(node, 6, "groups", 1))
    rank, dim = len(shape_of(x)), len(shape_of(x)) - len(shape_of(weight)) + 1
    own = walker.channel_alone(x, dim, node)
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
                group = torch.arange(groups).repeat_interleave(inputs // groups)
                where = f"groups of {walker.graph.owner(node)}"
                walker.balances.append(Balance(own, group, where))
    _bias(walker, argument(node, 2, "bias"), out)
    return (place(out, rank, dim),)


@channel_rule("linear")
def linear(walker: Walker, node: Node) -> Fields:
    """Read the last dimension; fields along others go through."""
    x, weight = node.args[0], _weight_of(walker, node)
    if weight is None:
        return _left_whole(walker, node)
    rank = len(shape_of(x))
    own, rest = walker.channel(x, -1, f"channels mixed at {location(node)}")
    _read_all(walker, node, own, weight)
    _bias(walker, argument(node, 2, "bias"), weight.rows)
    return (place(weight.rows, rank, rank - 1), *rest)


def _read_all(walker: Walker, node: Node, own: Tensor | None, weight: _Weight) -> None:
    """Tie the channels that a layer reads to the columns of its weight."""
    if own is None and weight.columns is not None:
        walker.pin(weight.columns, "an input of the model")
    elif own is not None and weight.columns is None:
        walker.pin(own, "a single channel")
    elif own is not None and weight.columns is not None:
        walker.equal(own, weight.columns)
        walker.reads.append(Read(node, weight.name, own, 1, False, weight.computed))


@dataclass(frozen=True)
class _Weight:
    """Parameter, filters and input positions of a weight; no positions: one channel each."""

    name: str
    rows: Tensor
    columns: Tensor | None
    computed: bool


def _weight_of(walker: Walker, node: Node) -> _Weight | None:
    """Find rows and columns of a convolution's or linear layer's weight, computed or not."""
    weight: Any = node.args[1]
    name = walker.parameter(weight)
    if name is not None:
        # What is no parameter (a blur's filter) follows its channels and is not masked itself.
        rows = walker.axis(name, 0, "stat" if name in walker.graph.buffers else "row")
        whole = op_name(node) == "linear" or argument(node, 6, "groups", 1) == 1
        columns = walker.axis(name, 1, "column") if whole else None
        return _Weight(name, rows, columns, computed=False)
    source = walker.sources.get(weight)
    fields = {tuple(varying(f)): f.reshape(-1) for f in walker.fields(weight)}
    grouped = op_name(node) != "linear" and argument(node, 6, "groups", 1) > 1
    known = {(0,)} if grouped else {(0,), (1,)}  # groups have other columns each
    if source is None or (0,) not in fields or fields.keys() - known:
        return None
    return _Weight(source, fields[0,], fields.get((1,)), computed=True)


def _left_whole(walker: Walker, node: Node) -> Fields:
    """Leave a layer whole whose filters are made from other numbers: a norm of weights, say."""
    owner = walker.graph.owner(node)
    why = f"at {location(node)}"
    source = walker.sources.get(node.args[1])  # type: ignore[arg-type]
    for dim in (0, 1):
        axis = None if source is None else walker.axes.get((walker.graph.aliases[source][0], dim))
        if axis is not None:  # before what pinned it on the way: it is this that cannot be done
            kind = type(walker.graph.modules[owner]).__name__
            walker.pins.insert(0, (axis.labels, f"it computes its weight, of a {kind}, {why}"))
    walker.computed.setdefault(owner, why)
    walker.pin_inputs(node, f"read by {owner or 'a layer'}, whose weights are computed {why}")
    return ()


def _bias(walker: Walker, bias: Any, rows: Tensor) -> None:
    name = walker.parameter(bias)
    if name is not None:
        walker.equal(walker.axis(name, 0, "bias"), rows)


# -- constants ------------------------------------------------------------------------------------


@constant_rule(
    "linear", *(f"conv{k}d" for k in (1, 2, 3)), *(f"conv_transpose{k}d" for k in (1, 2, 3))
)
def layer_constants(state: State, node: Node) -> Value:
    """Convolutions and linear layers: a row is known when all it is connected to is known."""
    x, weight = node.args[0], node.args[1]
    name = state.name(weight)
    if name is None:
        return _computed_constants(state, node)
    transposed = "transpose" in op_name(node)
    is_linear = op_name(node) == "linear"
    groups = 1 if is_linear else int(argument(node, 6, "groups", 1))
    rank = len(shape_of(x))
    dim = rank - 1 if is_linear else rank - len(shape_of(weight)) + 1
    given = state.given[node] = channels_of(state, x, dim)
    if state.get(x) is None and name not in state.kept:
        return None
    connected = _connections(state.wiring.of(name, transposed), groups, transposed=transposed)
    filters, positions = connected.shape
    given = given.view(groups, positions)
    # Zero padding shows a constant channel its border; only zero survives that. A transposed
    # convolution overlaps unevenly, so there, too, only zero is certain.
    exact = given == 0 if transposed or (not is_linear and has_padding(node)) else ~given.isnan()
    unknown = (connected & ~_for_each(exact, filters)).any(1)
    if bool(unknown.all()):
        return None
    rows = torch.zeros(filters, dtype=torch.float64)
    constant = torch.where(exact, given, 0.0)
    if bool((constant != 0).any()):
        constant = connected * _for_each(constant, filters)
        full = state.masked(weight)
        sums = full.flatten(2).sum(2) if full.dim() > 2 else full
        rows = (constant * sums).sum(1)
    bias = state.parameter(argument(node, 2, "bias"))
    if bias is not None:
        rows = rows + bias[0]
    return per_channel(rows.masked_fill(unknown, torch.nan), rank, dim)


def _computed_constants(state: State, node: Node) -> Value:
    """Convolutions and linear layers with computed weights: of rows that are zero the bias."""
    if "transpose" in op_name(node):
        return None
    x, weight = node.args[:2]
    shape, rank = shape_of(weight), len(shape_of(x))
    dim = rank - 1 if op_name(node) == "linear" else rank - len(shape) + 1
    given = state.given[node] = channels_of(state, x, dim)
    groups = given.numel() // shape[1]
    quiet = (given.view(groups, -1) == 0).all(1).repeat_interleave(shape[0] // groups)
    made = state.get(weight)
    if made is not None:
        quiet = quiet | (made.expand(shape) == 0).flatten(1).all(1)
    bias = state.parameter(argument(node, 2, "bias"))
    rows = torch.zeros(shape[0], dtype=torch.float64) if bias is None else bias[0]
    return per_channel(torch.where(quiet, rows, torch.nan), rank, dim)


def has_padding(node: Node) -> bool:
    """Tell whether a convolution pads with zeros, which a constant input would not survive."""
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _for_each(given: Tensor, filters: int) -> Tensor:
    """Repeat what is given to each group for its filters; for one group it takes no memory."""
    groups, positions = given.shape
    return given[:, None].expand(-1, filters // groups, -1).reshape(filters, positions)


def _connections(connected: Tensor, groups: int, *, transposed: bool) -> Tensor:
    """Return which of its group's positions each filter reads: (filters, positions of a group)."""
    if groups == 1 or not transposed:
        return connected
    # The groups of a transposed convolution share its second axis.
    filters, positions = connected.shape
    each = connected.view(filters, groups, positions // groups)
    return each.transpose(0, 1).reshape(filters * groups, -1)
