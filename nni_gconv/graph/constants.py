"""What masks make certain: channels whose value is the same for every input.

A filter whose mask is all zero emits its bias, a batch norm behind it emits a constant, a product
with zero is zero. The pass follows such constants through the graph exactly, from the masks and
the parameters alone; no input is guessed. Unknown is NaN, and a value with nothing known is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channels import op_name, shape_of
from nni_gconv.graph.rules.known_layers import has_padding
from nni_gconv.graph.rules.registry import MOVES, PASSES, POOLS, argument, is_pointwise
from nni_gconv.graph.rules.state import (
    RULES,
    State,
    Value,
    along,
    channels_of,
    known,
    known_rule,
    uniform,
)
from nni_gconv.graph.rules.storage import follow_storage
from nni_gconv.graph.trace import Graph
from nni_gconv.graph.wiring import Wiring

__all__ = ["given_values", "has_padding", "known_operands", "known_values"]

#: Handled as moves here, though channels need a rule of their own there.
_MOVED = frozenset({"pad", "constant_pad_nd", "channel_shuffle", "native_channel_shuffle"})


def known_values(graph: Graph, kept: Mapping[str, Tensor]) -> dict[Node, Any]:
    """Find what is known of each value in the graph when parts of the parameters are zero.

    Parameters
    ----------
    graph : Graph
        From :func:`nni_gconv.graph.trace.trace`.
    kept : mapping of str to bool Tensor
        Dotted parameter name -> True where the parameter is kept, in the parameter's shape.
        A parameter that is absent is kept whole.

    Returns
    -------
    dict of Node to Tensor or None
        float64 arrays that broadcast against the node's value; NaN where nothing is known. For an
        operator with several results, a list.
    """
    return _run(graph, kept).values


def given_values(
    graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None
) -> dict[Node, Tensor]:
    """Find what is known of each channel that a layer reads, at the moment it reads.

    Parameters
    ----------
    graph, kept
        As for :func:`known_values`. An operator that writes in place may change a value after a
        layer has read it, which is why this is not looked up in the other's result.
    wiring : Wiring, optional
        Of the same graph and masks, if it is at hand.

    Returns
    -------
    dict of Node to Tensor
        Convolution or linear node -> float64, shape (input channels,); NaN where unknown.
    """
    return _run(graph, kept, wiring).given


def known_operands(graph: Graph, kept: Mapping[str, Tensor]) -> dict[Node, tuple[Value, ...]]:
    """Find what is known of both operands of each addition, at the moment they are added.

    Parameters and returned values as for :func:`known_values`.
    """
    return _run(graph, kept).added


def _run(graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None) -> State:
    state = State(graph, kept, wiring)
    for node in graph.all_nodes:
        if node.op == "call_function":
            if op_name(node) == "add":
                state.added[node] = tuple(state.get(operand) for operand in node.args[:2])
            state.values[node] = _evaluate(state, node)
            follow_storage(node, state.values, state.storage, state.same, state.sharing)
    return state


def _evaluate(state: State, node: Node) -> Any:  # noqa: PLR0911 - one return a family
    name = op_name(node)
    if name == "getitem":
        source = state.values.get(node.args[0])
        return source[node.args[1]] if isinstance(source, list) else None  # type: ignore[index]
    if name in RULES:
        return RULES[name](state, node)
    if name in PASSES:
        return _pass(state, node)
    if name in POOLS:
        return _pool(state, node)
    if name in MOVES or name in _MOVED:
        return _move(state, node)
    if is_pointwise(node):
        return _pointwise(state, node)
    return None


def _pass(state: State, node: Node) -> Value:
    value, given = node.meta.get("val"), state.get(node.args[0])
    if given is None or not (isinstance(value, Tensor) and value.is_floating_point()):
        return None
    if op_name(node).endswith("dropout") and argument(node, 2, "train"):
        # In training mode only silence stays what it is, and not behind every dropout.
        return None if "alpha" in op_name(node) else known(given.masked_fill(given != 0, torch.nan))
    return given


@known_rule("zeros_like")
def _zeros(_: State, node: Node) -> Value:
    return torch.zeros([1] * len(shape_of(node)), dtype=torch.float64)


@known_rule("expand_as")
def _expanded(state: State, node: Node) -> Value:
    return state.get(node.args[0])


@known_rule("where")
def _where(state: State, node: Node) -> Value:
    """Known where both branches agree, whatever the condition says."""
    return _either(state, node, node.args[1], node.args[2])


@known_rule("masked_fill")
def _masked_fill(state: State, node: Node) -> Value:
    return _either(state, node, node.args[0], node.args[2])


def _either(state: State, node: Node, *branches: Any) -> Value:
    rank = len(shape_of(node))
    both = []
    for branch in branches:
        value = state.get(branch) if isinstance(branch, Node) else torch.tensor(float(branch))
        if value is None:
            return None
        both.append(value.to(torch.float64).reshape((1,) * (rank - value.dim()) + value.shape))
    return known(torch.where(both[0] == both[1], both[0], torch.nan))


@known_rule("glu")
def _gated(state: State, node: Node) -> Value:
    """Zero where the gated half is, whatever the gate."""
    rank = len(shape_of(node))
    dim = (int(node.args[1]) if len(node.args) > 1 else -1) % rank  # type: ignore[arg-type]
    if state.get(node.args[0]) is None:
        return None
    value, gate = channels_of(state, node.args[0], dim).view(2, -1)
    return along(torch.where(value == 0, 0.0, value * torch.sigmoid(gate)), rank, dim)


@known_rule("pixel_shuffle", "pixel_unshuffle")
def _pixels(state: State, node: Node) -> Value:
    """A channel made of several is known where they agree; one that becomes several is each."""
    rank, squared = len(shape_of(node)), int(node.args[1]) ** 2  # type: ignore[arg-type]
    given = channels_of(state, node.args[0], rank - 3)
    if op_name(node) == "pixel_shuffle":
        parts = given.view(-1, squared)
        given = torch.where((parts == parts[:, :1]).all(1), parts[:, 0], torch.nan)
    else:
        given = given.repeat_interleave(squared)
    return along(given, rank, rank - 3)


@known_rule("cat")
def _concatenate(state: State, node: Node) -> Value:
    parts: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    rank = len(shape_of(node))
    dim = int(argument(node, 1, "dim", 0)) % rank
    if all(state.get(part) is None for part in parts):
        return None
    return along(torch.cat([channels_of(state, part, dim) for part in parts]), rank, dim)


@known_rule("mean", "sum", "amax", "amin")
def _mean(state: State, node: Node) -> Value:
    """The mean of a constant is that constant, if it is one along all that is reduced."""
    value = state.get(node.args[0])
    dims = argument(node, 1, "dim")
    if value is None or not dims:
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    rank = len(shape_of(node.args[0]))
    gone = tuple(d % rank for d in dims)
    value = uniform(value, gone)
    if op_name(node) == "sum":
        value = torch.where(value == 0, value, torch.nan)
    return known(value if len(shape_of(node)) == rank else value.squeeze(gone))


def _pool(state: State, node: Node) -> Any:
    value, name = state.get(node.args[0]), op_name(node)
    if value is not None:
        # What varies in space is not followed through a window: only what is one constant.
        value = uniform(value, range(value.dim() - POOLS[name], value.dim()))
        if not _keeps_constants(node, name):
            value = torch.where(value == 0, value, torch.nan)
        value = known(value)
    several = isinstance(node.meta.get("val"), list | tuple)
    return [value, None] if several else value


def _keeps_constants(node: Node, name: str) -> bool:
    if "max_pool" in name or name.startswith("adaptive_avg") or "nearest" in name:
        return True
    if name.startswith("avg_pool"):
        padding, ceil = argument(node, 3, "padding", 0), argument(node, 4, "ceil_mode", False)
        padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
        return not padded and not ceil and argument(node, 6, "divisor_override") is None
    return False


def _move(state: State, node: Node) -> Any:
    several = isinstance(node.meta.get("val"), list | tuple)
    value = state.get(node.args[0])
    if value is None and op_name(node) in ("pad", "constant_pad_nd"):
        # What is padded is known whatever it is padded to.
        value = torch.full([1] * len(shape_of(node.args[0])), torch.nan, dtype=torch.float64)
    if value is None:
        return [None for _ in node.meta["val"]] if several else None
    full = value.expand(shape_of(node.args[0]))
    result = _functional(node)(full.contiguous(), *node.args[1:], **node.kwargs)
    return [known(_squash(r)) for r in result] if several else known(_squash(result))


def _squash(value: Tensor) -> Tensor:
    """Drop dimensions along which nothing changes to size 1; NaN equals NaN."""
    for dim in range(value.dim()):
        head = value.narrow(dim, 0, 1)
        if bool(((value == head) | (value.isnan() & head.isnan())).all()):
            value = head
    return value


def _pointwise(state: State, node: Node) -> Value:
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
        result = _functional(node)(*args, **kwargs)
    except RuntimeError:
        return None  # an operand that is no floating-point number
    unknown = torch.zeros((), dtype=torch.bool)
    zero = torch.zeros((), dtype=torch.bool)
    for index, value in enumerate(operands):
        unknown = unknown | value.isnan()
        zero = zero | ((value == 0) if product or (quotient and index == 0) else False)
    result = torch.where(unknown, torch.nan, result.to(torch.float64))
    return known(torch.where(zero, 0.0, result))


def _functional(node: Node) -> Callable[..., Any]:
    """Return the operator that makes a new value in place of the one that overwrites."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet is None or not packet.__name__.endswith("_"):
        return target
    free = getattr(torch.ops.aten, packet.__name__.removesuffix("_"))
    return getattr(free, target._overloadname, free)
