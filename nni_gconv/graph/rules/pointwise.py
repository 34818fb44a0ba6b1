"""Element by element: sums and products of branches, activations, gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channel_map import Field, Fields, place, varying
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import channel_rule, constant_rule, merge
from nni_gconv.graph.rules.state import State, Value, channels_of, functional, known, per_channel
from nni_gconv.graph.trace import location

#: A zero factor makes these zero whatever the other factor is.
ELEMENTWISE_PRODUCTS = frozenset({"mul", "div"})
#: A parameter that is multiplied with channels or added to them is masked with its channel.
_MASKED_WITH = frozenset({*ELEMENTWISE_PRODUCTS, "add", "sub"})
#: Element by element, though torch does not tag them so.
_POINTWISE = frozenset(
    "hardswish hardsigmoid hardtanh relu6 selu celu mish silu gelu leaky_relu elu softplus "
    "softsign logsigmoid log_sigmoid threshold tanhshrink hardshrink softshrink rrelu where "
    "masked_fill floor_divide rsub copy expand_as".split()
)


def is_pointwise(node: Node) -> bool:
    """Tell whether an operator works element by element."""
    return op_name(node) in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())


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
        other = len(operands) > 1 and op_name(node) not in _MASKED_WITH
        name = walker.parameter(operand)
        frozen = name in walker.graph.buffers and walker.graph.acts_on_channels(operand)
        if other and name is not None and not frozen:  # a frozen shift is masked as others are
            for field in fields:
                why = f"{op_name(node)} of a parameter and each channel at {location(node)}"
                walker.pin(field, why)
    return tuple(merged)


def _tensor_arguments(node: Node) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def pointwise_constants(state: State, node: Node) -> Value:
    """Known where every operand is known, and zero where any factor of a product is zero."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return None
    product, quotient = op_name(node) == "mul", op_name(node) == "div"
    operands: list[Tensor] = []
    found = False

    def look(argument_: Node) -> Tensor:
        nonlocal found
        parameter = state.parameter(argument_)
        if parameter is not None:
            # A factor that happens to be zero today is not masked; only masks are certain.
            value = torch.where(parameter[1], torch.nan, 0.0) if product else parameter[0]
        else:
            known = state.get(argument_)
            found = found or known is not None
            value = (
                known
                if known is not None
                else torch.full((1,) * len(shape_of(argument_)), torch.nan, dtype=torch.float64)
            )
        found = found or bool((value == 0).any() and product)
        operands.append(value)
        return value.nan_to_num(nan=0.0)

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), look)
    if not found:
        return None
    try:
        result = functional(node)(*args, **kwargs)
    except RuntimeError:
        return None  # an operand that is no floating-point number
    unknown = torch.zeros((), dtype=torch.bool)
    zero = torch.zeros((), dtype=torch.bool)
    for index, value in enumerate(operands):
        unknown = unknown | value.isnan()
        zero = zero | ((value == 0) if product or (quotient and index == 0) else False)
    result = torch.where(unknown, torch.nan, result.to(torch.float64))
    return known(torch.where(zero, 0.0, result))


# -- what is never negative -----------------------------------------------------------------------

_NOT_NEGATIVE = frozenset(
    "relu relu6 sigmoid hardsigmoid softmax _softmax softplus abs square exp norm "
    "linalg_vector_norm".split()
)
#: Not negative where all that they are given is not.
_KEEPS_SIGN = frozenset(
    "mul add div sqrt mean sum amax amin max min cat stack view reshape flatten unflatten squeeze "
    "unsqueeze permute transpose select slice narrow expand expand_as contiguous clone dropout "
    "getitem chunk split split_with_sizes max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d".split()
)


def never_negative(value: Any, depth: int = 12) -> bool:
    """Tell whether a value cannot be negative, from the operators that made it."""
    if not isinstance(value, Node):
        return isinstance(value, int | float) and value >= 0
    if value.op != "call_function" or not depth:
        return False
    name = op_name(value)
    if name == "clamp" and len(value.args) > 1:
        return isinstance(value.args[1], int | float) and value.args[1] >= 0
    given = _tensor_arguments(value)
    numbers = [a for a in value.args[1:] if isinstance(a, int | float)]
    if name in ("mul", "add", "div") and any(n < 0 for n in numbers):
        return False
    return name in _NOT_NEGATIVE or (
        name in _KEEPS_SIGN and all(never_negative(x, depth - 1) for x in given)
    )


# -- either of two values --------------------------------------------------------------------------


@constant_rule("where")
def where_constants(state: State, node: Node) -> Value:
    """Known where both branches agree, whatever the condition says."""
    return _either(state, node, node.args[1], node.args[2])


@constant_rule("masked_fill")
def masked_fill_constants(state: State, node: Node) -> Value:
    """Known where the value is what it is filled with."""
    return _either(state, node, node.args[0], node.args[2])


@constant_rule("expand_as")
def expand_as_constants(state: State, node: Node) -> Value:
    """What is known broadcasts as the value does."""
    return state.get(node.args[0])


def _either(state: State, node: Node, *branches: Any) -> Value:
    rank = len(shape_of(node))
    both = []
    for branch in branches:
        value = state.get(branch) if isinstance(branch, Node) else torch.tensor(float(branch))
        if value is None:
            return None
        both.append(value.to(torch.float64).reshape((1,) * (rank - value.dim()) + value.shape))
    return known(torch.where(both[0] == both[1], both[0], torch.nan))


# -- activations with slopes and gates ------------------------------------------------------------


@channel_rule("prelu", "_prelu_kernel")
def prelu(walker: Walker, node: Node) -> Fields:
    """One slope per channel, or one for all."""
    own, _ = walker.channel(node.args[0], 1, f"channels mixed with space at {location(node)}")
    name = walker.parameter(node.args[1])
    if own is not None and name is not None and shape_of(node.args[1])[0] == own.numel():
        walker.equal(walker.axis(name, 0, "scale"), own)
    return walker.fields(node.args[0])


@constant_rule("prelu", "_prelu_kernel")
def prelu_constants(state: State, node: Node) -> Value:
    """PReLU: one slope per channel, or one for all."""
    parameter = state.parameter(node.args[1])
    if state.get(node.args[0]) is None or parameter is None:
        return None
    rank = len(shape_of(node.args[0]))
    dim = min(1, rank - 1)
    given = channels_of(state, node.args[0], dim)
    return per_channel(torch.where(given < 0, given * parameter[0], given), rank, dim)


@channel_rule("glu")
def gated_linear_unit(walker: Walker, node: Node) -> Fields:
    """One half gates the other: a channel and its gate go together."""
    dim = int(node.args[1]) if len(node.args) > 1 else -1  # type: ignore[arg-type]
    own, rest = walker.channel(node.args[0], dim, f"channels mixed with space at {location(node)}")
    if own is None:
        return rest
    value, gate = own.view(2, -1)
    walker.equal(value, gate)
    rank = len(shape_of(node))
    return (place(value, rank, dim % rank), *rest)


@constant_rule("glu")
def gated_linear_unit_constants(state: State, node: Node) -> Value:
    """Zero where the gated half is, whatever the gate."""
    rank = len(shape_of(node))
    dim = (int(node.args[1]) if len(node.args) > 1 else -1) % rank  # type: ignore[arg-type]
    if state.get(node.args[0]) is None:
        return None
    value, gate = channels_of(state, node.args[0], dim).view(2, -1)
    return per_channel(torch.where(value == 0, 0.0, value * torch.sigmoid(gate)), rank, dim)
