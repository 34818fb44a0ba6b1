"""What layers with weights make of constants: convolutions, norms, slopes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channels import op_name, shape_of
from nni_gconv.graph.rules.registry import argument
from nni_gconv.graph.rules.state import State, Value, along, channels_of, known_rule

__all__ = ["has_padding"]


def has_padding(node: Node) -> bool:
    """Tell whether a convolution pads with zeros, which a constant input would not survive."""
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


@known_rule(
    "linear", *(f"conv{k}d" for k in (1, 2, 3)), *(f"conv_transpose{k}d" for k in (1, 2, 3))
)
def layer(state: State, node: Node) -> Value:
    """Convolutions and linear layers: a row is known when all it is connected to is known."""
    x, weight = node.args[0], node.args[1]
    name = state.name(weight)
    if name is None:
        return None
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
    # Zero padding shows a constant channel its border; only silence survives that. A transposed
    # convolution overlaps unevenly, so there, too, only silence is certain.
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
    return along(rows.masked_fill(unknown, torch.nan), rank, dim)


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


@known_rule("batch_norm", "instance_norm")
def norm(state: State, node: Node) -> Value:
    """Norms in eval mode; a masked scale leaves the shift whatever comes in."""
    scale, shift = state.parameter(node.args[1]), state.parameter(node.args[2])
    mean, var = state.parameter(node.args[3]), state.parameter(node.args[4])
    if not _anything_known(state, node, scale):
        return None
    given = channels_of(state, node.args[0], 1)
    if argument(node, 5, "training") or mean is None or var is None:
        # Statistics of the input itself: a constant is its own mean.
        out = given * 0.0
    else:
        out = (given - mean[0]) / (var[0] + float(argument(node, 7, "eps", 1e-5))).sqrt()
    return along(_affine(out, scale, shift), len(shape_of(node)), 1)


@known_rule("group_norm")
def group_norm(state: State, node: Node) -> Value:
    """As other norms, where all channels that are normalised together are one constant."""
    scale, shift = (state.parameter(argument(node, i, n)) for i, n in ((2, "weight"), (3, "bias")))
    if not _anything_known(state, node, scale):
        return None
    parts = channels_of(state, node.args[0], 1).view(int(node.args[1]), -1)  # type: ignore[arg-type]
    out = torch.where((parts == parts[:, :1]).all(1, keepdim=True), 0.0, torch.nan)
    return along(_affine(out.expand_as(parts).reshape(-1), scale, shift), len(shape_of(node)), 1)


def _anything_known(state: State, node: Node, scale: tuple[Tensor, Tensor] | None) -> bool:
    masked = scale is not None and not bool(scale[1].all())
    return masked or state.get(node.args[0]) is not None


def _affine(
    value: Tensor, scale: tuple[Tensor, Tensor] | None, shift: tuple[Tensor, Tensor] | None
) -> Tensor:
    if scale is not None:
        value = torch.where(scale[1], value * scale[0], 0.0)
    return value if shift is None else value + shift[0]


@known_rule("prelu", "_prelu_kernel")
def slope(state: State, node: Node) -> Value:
    """PReLU: one slope per channel, or one for all."""
    parameter = state.parameter(node.args[1])
    if state.get(node.args[0]) is None or parameter is None:
        return None
    rank = len(shape_of(node.args[0]))
    dim = min(1, rank - 1)
    given = channels_of(state, node.args[0], dim)
    return along(torch.where(given < 0, given * parameter[0], given), rank, dim)
