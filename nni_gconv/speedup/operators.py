"""What each torch operator does to channels: one small rule per family.

A rule takes the walker and a node, may tie or pin labels, and returns the fields of the result.
An operator without a rule is opaque: the channels it reads keep their width, and the user is told
which operator on which line it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.speedup.channels import (
    Balance,
    ChannelMap,
    Field,
    Fields,
    PadEdit,
    Read,
    Walker,
    compress,
    op_name,
    run_on,
    shape_of,
    varying,
)
from nni_gconv.speedup.trace import Graph, location

__all__ = [
    "ELEMENTWISE_PRODUCTS",
    "MOVES",
    "PASSES",
    "POOLS",
    "argument",
    "is_pointwise",
    "map_channels",
]

Rule = Callable[[Walker, Node], Any]
RULES: dict[str, Rule] = {}

#: A zero factor makes these zero whatever the other factor is.
ELEMENTWISE_PRODUCTS = frozenset({"mul", "div"})
#: Element by element, though torch does not tag them so.
_POINTWISE = frozenset(
    "hardswish hardsigmoid hardtanh relu6 selu celu mish silu gelu leaky_relu elu softplus softsign "
    "logsigmoid log_sigmoid threshold tanhshrink hardshrink softshrink rrelu".split()
)
#: Values go through unchanged (in eval mode).
PASSES = frozenset(
    "dropout feature_dropout alpha_dropout contiguous clone detach to _to_copy alias "
    "lift_fresh_copy type_as float double half".split()
)
#: Operators that only move data: run on the labels themselves.
MOVES = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t numpy_T "
    "swapaxes movedim expand select slice narrow split split_with_sizes chunk unbind repeat "
    "pixel_shuffle pixel_unshuffle channel_shuffle flip roll".split()
)
#: Operators that work on each channel by itself, over the trailing dimensions.
POOLS = {
    **{f"{kind}_pool{k}d": k for k in (1, 2, 3) for kind in ("max", "avg", "lp")},
    **{f"adaptive_{kind}_pool{k}d": k for k in (1, 2, 3) for kind in ("max", "avg")},
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    "upsample_nearest1d": 1,
    "upsample_linear1d": 1,
    **{
        f"upsample_{kind}2d": 2
        for kind in ("nearest", "bilinear", "bicubic", "_nearest_exact", "_bilinear_aa")
    },
    "upsample_nearest3d": 3,
    "upsample_trilinear3d": 3,
}


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
        From :func:`nni_gconv.speedup.trace.trace`.
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
    >>> from nni_gconv.speedup.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    >>> channels = map_channels(trace(net, torch.zeros(1, 3, 8, 8)))
    >>> rows = channels.axes["0.weight", 0].labels
    >>> columns = channels.axes["1.weight", 1].labels
    >>> bool((channels.of(rows) == channels.of(columns)).all())
    True
    """
    walker = Walker(graph)
    pins = dict(pin)
    for node in graph.nodes:
        if node in pins:
            walker.pin_inputs(node, pins[node])
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


def is_pointwise(node: Node) -> bool:
    """Tell whether an operator works element by element."""
    return op_name(node) in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of these names."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return add


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """Read an operator's argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _place(labels: Tensor, rank: int, dim: int) -> Field:
    """View a label vector so that it runs along `dim` of a tensor of `rank` dimensions."""
    view = [1] * rank
    view[dim] = -1
    return labels.view(view)


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
    return (_place(rows, rank, dim),)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(walker: Walker, node: Node) -> Fields:
    """As a convolution with the two first axes of the weight exchanged."""
    x, weight = node.args[0], node.args[1]
    name = walker.parameter(weight)
    if name is None or int(argument(node, 6, "groups", 1)) != 1:
        return walker.opaque(node)
    rank, dim = len(shape_of(x)), len(shape_of(x)) - len(shape_of(weight)) + 1
    own, rest = walker.channel(x, dim, f"channels mixed with space at {location(node)}")
    for field in rest:
        walker.pin(field, f"channels mixed with space at {location(node)}")
    rows, columns = walker.axis(name, 1, "row"), walker.axis(name, 0, "column")
    if own is None:
        walker.pin(columns, "an input of the model")
    else:
        walker.equal(own, columns)
        walker.reads.append(Read(node, name, own, 1, transposed=True))
    _bias(walker, argument(node, 2, "bias"), rows)
    return (_place(rows, rank, dim),)


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
    return (_place(rows, rank, rank - 1), *rest)


def _bias(walker: Walker, bias: Any, rows: Tensor) -> None:
    name = walker.parameter(bias)
    if name is not None:
        walker.equal(walker.axis(name, 0, "bias"), rows)


# -- normalisation --------------------------------------------------------------------------------


@rule("batch_norm", "instance_norm")
def channel_norm(walker: Walker, node: Node) -> Fields:
    """Scale, shift and statistics belong to the channel they act on."""
    own, _ = walker.channel(node.args[0], 1, f"channels mixed with space at {location(node)}")
    for tensor, role in zip(node.args[1:5], ("scale", "scale", "stat", "stat"), strict=False):
        name = walker.parameter(tensor)
        if name is not None and own is not None:
            walker.equal(walker.axis(name, 0, role), own)
    return walker.fields(node.args[0])


@rule("group_norm")
def group_norm(walker: Walker, node: Node) -> Fields:
    """One group per channel is per channel; otherwise the statistics mix the channels."""
    x, groups = node.args[0], int(node.args[1])  # type: ignore[arg-type]
    own, _ = walker.channel(x, 1, f"channels mixed with space at {location(node)}")
    if own is None:
        return walker.fields(x)
    if groups != own.numel():
        walker.pin(own, f"normalised over channels at {location(node)}")
        return walker.fields(x)
    for position, key in ((2, "weight"), (3, "bias")):
        name = walker.parameter(argument(node, position, key))
        if name is not None:
            walker.equal(walker.axis(name, 0, "scale"), own)
    walker.pin(own, f"num_groups equals the channels at {location(node)}")
    return walker.fields(x)


@rule("layer_norm", "rms_norm")
def layer_norm(walker: Walker, node: Node) -> Fields:
    """Statistics over the trailing dimensions: what varies there keeps its width."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - len(node.args[1])  # type: ignore[arg-type]
    for field in fields:
        if any(d >= first for d in varying(field)):
            walker.pin(field, f"normalised over channels at {location(node)}")
    return fields


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "glu", "sort", "topk")
def along_one(walker: Walker, node: Node) -> Fields:
    """Mixes positions along one dimension; fields along others go through."""
    dim = argument(node, 1, "dim", -1)
    if not isinstance(dim, int) or isinstance(node.meta.get("val"), list | tuple):
        return walker.opaque(node)
    fields = walker.fields(node.args[0])
    for field in fields:
        if dim % field.dim() in varying(field):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
    return fields if op_name(node) != "glu" else tuple(f for f in fields if f.shape[dim] == 1)


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
            _merge(walker, merged, field)
    for operand, (shape, fields) in zip(operands, aligned, strict=True):
        fixed = {d for d in range(rank) if shape[d] > 1 and all(f.shape[d] == 1 for f in fields)}
        for field in merged:
            if fixed & set(varying(field)):
                walker.pin(field, f"meets a tensor of fixed width at {location(node)}")
        if walker.parameter(operand) and op_name(node) not in ELEMENTWISE_PRODUCTS:
            for field in fields:
                walker.pin(field, f"a parameter is added to each channel at {location(node)}")
    return tuple(merged)


def _tensor_arguments(node: Node) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _merge(walker: Walker, merged: list[Field], field: Field) -> None:
    """Add a field, tied to the one that runs along the same dimensions if there is one."""
    along = set(varying(field))
    if not along:
        return
    for index, other in enumerate(merged):
        if along & set(varying(other)):
            walker.equal(field, other)
            if along > set(varying(other)):
                merged[index] = field
            return
    merged.append(field)


@rule("cat")
def concatenate(walker: Walker, node: Node) -> Fields:
    """Along the channels the labels are concatenated; along others the inputs are tied."""
    parts: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    dim = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    reason = f"channels mixed with space at {location(node)}"
    split = [walker.channel(part, dim, reason) for part in parts]
    merged: list[Field] = []
    for _, rest in split:
        for field in rest:
            _merge(walker, merged, field)
    if all(own is None for own, _ in split):
        return tuple(merged)
    labels = []
    for part, (own, _) in zip(parts, split, strict=True):
        if own is not None:
            labels.append(own)
            continue
        labels.append(walker.fresh(shape_of(part)[dim]))
        walker.pin(labels[-1], f"concatenated with a tensor of fixed width at {location(node)}")
    return (_place(torch.cat(labels), len(shape_of(node)), dim), *merged)


# -- moving data ----------------------------------------------------------------------------------


@rule(*PASSES)
def passes(walker: Walker, node: Node) -> Fields:
    """The value itself."""
    return walker.fields(node.args[0])


@rule("getitem")
def item(walker: Walker, node: Node) -> Fields:
    """One of several results."""
    source = walker.values.get(node.args[0], ())  # type: ignore[arg-type]
    return source[node.args[1]] if isinstance(source, list) else tuple(source)  # type: ignore[index]


@rule(*MOVES)
def move(walker: Walker, node: Node) -> Any:
    """Do to the labels what the operator does to the data."""
    value = node.meta.get("val")
    several = isinstance(value, list | tuple)
    results: list[list[Field]] = [[] for _ in value] if several else [[]]  # type: ignore[union-attr]
    for field in walker.fields(node.args[0]):
        full = field.expand(shape_of(node.args[0]))
        # A view of the data need not be a view of labels that are stored once and broadcast.
        moved = run_on(node, [full.contiguous() if op_name(node) == "view" else full])
        pieces = [compress(piece) for piece in (moved if several else [moved])]
        for piece in pieces:
            problem = _not_followed(field, piece)
            if problem:
                walker.pin(field, f"{problem} at {location(node)}")
        for result, piece in zip(results, pieces, strict=True):
            if varying(piece):
                result.append(piece)
    return [tuple(r) for r in results] if several else tuple(results[0])


def _not_followed(before: Field, after: Field) -> str | None:
    """Say why a smaller model would not see the same channels in the same order, if so."""
    old, new = _first_seen(before), _first_seen(after)
    if len(varying(after)) > 1:
        return "channels split over two dimensions"
    if not np.array_equal(np.sort(old), np.sort(new)):
        return "a part of the channels taken"
    if not np.array_equal(old, new):
        return "channels put in another order"
    return None


def _first_seen(field: Field) -> np.ndarray:
    labels, index = np.unique(field.reshape(-1).numpy(), return_index=True)
    return labels[np.argsort(index, kind="stable")]


@rule("pad", "constant_pad_nd")
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


def _pad_channels(walker: Walker, node: Node, field: Field, dim: int, widths: list[int]) -> Field:
    rank = field.dim()
    entry = 2 * (rank - 1 - dim)
    if widths[entry] < 0 or widths[entry + 1] < 0:
        walker.pin(field, f"channels cropped at {location(node)}")
    front = walker.fresh(max(widths[entry], 0))
    back = walker.fresh(max(widths[entry + 1], 0))
    owner = walker.graph.owner(node)
    module = walker.graph.modules.get(owner)
    constant = argument(node, 2, "mode", "constant") == "constant" and not argument(
        node, 3, "value"
    )
    if (
        constant
        and isinstance(getattr(module, "padding", None), tuple | list)
        and isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d)
    ):
        walker.pads.append(PadEdit(owner, entry, front, back))
    else:
        reason = f"the padding of channels is written in the forward at {location(node)}"
        walker.pin(torch.cat([front, back]), reason)
    return _place(torch.cat([front, field.reshape(-1), back]), rank, dim)


@rule(*POOLS)
def pool(walker: Walker, node: Node) -> Any:
    """Each channel by itself; what runs along the pooled dimensions keeps its width."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - POOLS[op_name(node)]
    for field in fields:
        if any(d >= first for d in varying(field)):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
    kept = tuple(f for f in fields if all(d < first for d in varying(f)))
    value = node.meta.get("val")
    return [kept for _ in value] if isinstance(value, list | tuple) else kept


@rule("mean", "sum", "amax", "amin", "var", "std", "norm", "linalg_vector_norm")
def reduce(walker: Walker, node: Node) -> Fields:
    """Fields along the reduced dimensions are mixed; the others go through."""
    rank = len(shape_of(node.args[0]))
    dims = argument(node, 1, "dim")
    if op_name(node) in ("norm", "linalg_vector_norm"):
        dims = argument(node, 2, "dim")
    if isinstance(dims, int):
        dims = [dims]
    gone = {d % rank for d in dims} if dims else set(range(rank))
    keepdim = len(shape_of(node)) == rank
    kept = []
    for field in walker.fields(node.args[0]):
        if gone & set(varying(field)):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
        else:
            kept.append(field if keepdim else field.squeeze(tuple(gone)))
    return tuple(kept)
