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

from nni_gconv.speedup.channels import lookup, op_name, shape_of
from nni_gconv.speedup.rules import MOVES, PASSES, POOLS, argument, is_pointwise
from nni_gconv.speedup.storage import follow_storage
from nni_gconv.speedup.trace import Graph
from nni_gconv.speedup.wiring import Wiring

__all__ = ["given_values", "has_padding", "known_values"]

Value = Tensor | None


def known_values(graph: Graph, kept: Mapping[str, Tensor]) -> dict[Node, Any]:
    """Find what is known of each value in the graph when parts of the parameters are zero.

    Parameters
    ----------
    graph : Graph
        From :func:`nni_gconv.speedup.trace.trace`.
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


def _run(graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None) -> _State:
    state = _State(graph, kept, wiring)
    for node in graph.nodes:
        if node.op == "call_function":
            state.values[node] = _evaluate(state, node)
            follow_storage(node, state.values, state.storage, state.same, state.sharing)
    return state


def has_padding(node: Node) -> bool:
    """Tell whether a convolution pads with zeros, which a constant input would not survive."""
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


class _State:
    def __init__(
        self, graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None
    ) -> None:
        self.graph = graph
        self.kept = kept
        self.wiring = wiring or Wiring(graph, kept)
        self.values: dict[Any, Any] = {}
        self.given: dict[Node, Tensor] = {}
        #: Value -> the one whose memory it shares, and the one that is the very same tensor.
        self.storage: dict[Any, Any] = {}
        self.same: dict[Any, Any] = {}
        self.sharing: dict[Any, list[Any]] = {}

    def get(self, node: Any) -> Value:
        value = self.values.get(node) if isinstance(node, Node) else None
        return None if isinstance(value, list) else value

    def name(self, node: Any) -> str | None:
        if isinstance(node, Node) and node.op == "placeholder":
            return self.graph.tensors.get(node.name)
        return None

    def masked(self, node: Any) -> Tensor:
        """Return a parameter's masked values."""
        found = self.parameter(node)
        return torch.empty(0) if found is None else found[0]

    def parameter(self, node: Any) -> tuple[Tensor, Tensor] | None:
        """Return a parameter's masked values and its mask."""
        name = self.name(node)
        if name is None:
            return None
        tensor = lookup(self.graph, name).detach().to("cpu", torch.float64)
        kept = self.kept.get(name)
        if kept is None:
            return tensor, torch.ones_like(tensor, dtype=torch.bool)
        return tensor * kept, kept


def _known(value: Tensor) -> Value:
    return None if bool(value.isnan().all()) else value


def _evaluate(state: _State, node: Node) -> Any:  # noqa: PLR0911 - one return a family
    name = op_name(node)
    if name == "getitem":
        source = state.values.get(node.args[0])
        return source[node.args[1]] if isinstance(source, list) else None  # type: ignore[index]
    if name in RULES:
        return RULES[name](state, node)
    if name in PASSES:
        value = node.meta.get("val")
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return state.get(node.args[0]) if floating else None
    if name in POOLS:
        return _pool(state, node)
    if name in MOVES or name in ("pad", "constant_pad_nd"):
        return _move(state, node)
    if is_pointwise(node):
        return _pointwise(state, node)
    return None


def _channels(state: _State, node: Any, dim: int) -> Tensor:
    """Per-channel constants of a value, NaN where unknown or not constant along the rest."""
    shape = shape_of(node)
    unknown = torch.full((shape[dim],), torch.nan, dtype=torch.float64)
    value = state.get(node)
    if value is None or any(s > 1 for d, s in enumerate(value.shape) if d != dim % len(shape)):
        return unknown
    return value.reshape(-1).expand(shape[dim])


def _layer(state: _State, node: Node) -> Value:
    """Convolutions and linear layers: a row is known when all it is connected to is known."""
    x, weight = node.args[0], node.args[1]
    name = state.name(weight)
    if name is None:
        return None
    transposed = "transpose" in op_name(node)
    linear = op_name(node) == "linear"
    groups = 1 if linear else int(argument(node, 6, "groups", 1))
    if transposed and groups != 1:
        return None
    rank = len(shape_of(x))
    dim = rank - 1 if linear else rank - len(shape_of(weight)) + 1
    given = state.given[node] = _channels(state, x, dim)
    if state.get(x) is None and name not in state.kept:
        return None
    connected = state.wiring.of(name, transposed)
    filters, positions = connected.shape
    if groups > 1:
        group = torch.arange(filters) // (filters // groups)
        given = given[group[:, None] * positions + torch.arange(positions)]
    else:
        given = given.expand(filters, positions)
    # Zero padding shows a constant channel its border; only silence survives that. A transposed
    # convolution overlaps unevenly, so there, too, only silence is certain.
    exact = given == 0 if transposed or (not linear and has_padding(node)) else ~given.isnan()
    unknown = (connected & ~exact).any(1)
    if bool(unknown.all()):
        return None
    rows = torch.zeros(filters, dtype=torch.float64)
    constant = torch.where(connected & exact, given, 0.0)
    if bool((constant != 0).any()):
        full = state.masked(weight)
        sums = full.flatten(2).sum(2) if full.dim() > 2 else full
        rows = (constant * (sums.T if transposed else sums)).sum(1)
    bias = state.parameter(argument(node, 2, "bias"))
    if bias is not None:
        rows = rows + bias[0]
    rows = rows.masked_fill(unknown, torch.nan)
    view = [1] * rank
    view[dim] = -1
    return rows.view(view)


def _pixels(state: _State, node: Node) -> Value:
    """A channel made of several is known where they agree; one that becomes several is each."""
    rank, squared = len(shape_of(node)), int(node.args[1]) ** 2  # type: ignore[arg-type]
    given = _channels(state, node.args[0], rank - 3)
    if op_name(node) == "pixel_shuffle":
        parts = given.view(-1, squared)
        given = torch.where((parts == parts[:, :1]).all(1), parts[:, 0], torch.nan)
    else:
        given = given.repeat_interleave(squared)
    return _known(given.view([-1 if d == rank - 3 else 1 for d in range(rank)]))


def _norm(state: _State, node: Node) -> Value:
    """Norms in eval mode; a masked scale leaves the shift whatever comes in."""
    x = node.args[0]
    scale, shift = state.parameter(node.args[1]), state.parameter(node.args[2])
    mean, var = state.parameter(node.args[3]), state.parameter(node.args[4])
    masked = scale is not None and not bool(scale[1].all())
    if state.get(x) is None and not masked:
        return None
    given = _channels(state, x, 1)
    if argument(node, 5, "training") or mean is None or var is None:
        # Statistics of the input itself: a constant is its own mean.
        out = given * 0.0
    else:
        out = (given - mean[0]) / (var[0] + float(argument(node, 7, "eps", 1e-5))).sqrt()
    if scale is not None:
        out = torch.where(scale[1], out * scale[0], 0.0)
    if shift is not None:
        out = out + shift[0]
    view = [1] * len(shape_of(x))
    view[1] = -1
    return _known(out.view(view))


def _slope(state: _State, node: Node) -> Value:
    """PReLU: one slope per channel, or one for all."""
    slope = state.parameter(node.args[1])
    if state.get(node.args[0]) is None or slope is None:
        return None
    rank = len(shape_of(node.args[0]))
    given = _channels(state, node.args[0], min(1, rank - 1))
    view = [1] * rank
    view[min(1, rank - 1)] = -1
    return _known(torch.where(given < 0, given * slope[0], given).view(view))


def _concatenate(state: _State, node: Node) -> Value:
    parts: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    rank = len(shape_of(node))
    dim = int(argument(node, 1, "dim", 0)) % rank
    if all(state.get(part) is None for part in parts):
        return None
    view = [1] * rank
    view[dim] = -1
    return _known(torch.cat([_channels(state, part, dim) for part in parts]).view(view))


def _mean(state: _State, node: Node) -> Value:
    """The mean of a constant is that constant, if it is one along all that is reduced."""
    value = state.get(node.args[0])
    dims = argument(node, 1, "dim")
    if value is None or not dims:
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    rank = len(shape_of(node.args[0]))
    gone = tuple(d % rank for d in dims)
    if any(value.shape[d] > 1 for d in gone):
        return None
    if op_name(node) == "sum":
        value = torch.where(value == 0, value, torch.nan)
    return value if len(shape_of(node)) == rank else value.squeeze(gone)


def _pool(state: _State, node: Node) -> Any:
    value, name = state.get(node.args[0]), op_name(node)
    if value is not None:
        # What varies in space is not followed through a window: only what is one constant.
        space = tuple(range(len(shape_of(node.args[0])) - POOLS[name], value.dim()))
        low = value.amin(space, keepdim=True)
        value = torch.where(low == value.amax(space, keepdim=True), low, torch.nan)
        if not _keeps_constants(node, name):
            value = torch.where(value == 0, value, torch.nan)
        value = _known(value)
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


def _move(state: _State, node: Node) -> Any:
    several = isinstance(node.meta.get("val"), list | tuple)
    value = state.get(node.args[0])
    if value is None and op_name(node) in ("pad", "constant_pad_nd"):
        # What is padded is known whatever it is padded to.
        value = torch.full([1] * len(shape_of(node)), torch.nan, dtype=torch.float64)
    if value is None:
        return [None for _ in node.meta["val"]] if several else None
    full = value.expand(shape_of(node.args[0]))
    result = _functional(node)(full.contiguous(), *node.args[1:], **node.kwargs)
    return [_known(_squash(r)) for r in result] if several else _known(_squash(result))


def _squash(value: Tensor) -> Tensor:
    """Drop dimensions along which nothing changes to size 1; NaN equals NaN."""
    for dim in range(value.dim()):
        head = value.narrow(dim, 0, 1)
        if bool(((value == head) | (value.isnan() & head.isnan())).all()):
            value = head
    return value


def _pointwise(state: _State, node: Node) -> Value:
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
    return _known(torch.where(zero, 0.0, result))


def _functional(node: Node) -> Callable[..., Any]:
    """Return the operator that makes a new value in place of the one that overwrites."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet is None or not packet.__name__.endswith("_"):
        return target
    free = getattr(torch.ops.aten, packet.__name__.removesuffix("_"))
    return getattr(free, target._overloadname, free)


Rule = Callable[[_State, Node], Any]
RULES: dict[str, Rule] = {
    "linear": _layer,
    "batch_norm": _norm,
    "instance_norm": _norm,
    "prelu": _slope,
    "zeros_like": lambda _, node: torch.zeros([1] * len(shape_of(node)), dtype=torch.float64),
    "cat": _concatenate,
    "pixel_shuffle": _pixels,
    "pixel_unshuffle": _pixels,
    "mean": _mean,
    "sum": _mean,
    "amax": _mean,
    "amin": _mean,
    **{f"conv{k}d": _layer for k in (1, 2, 3)},
    **{f"conv_transpose{k}d": _layer for k in (1, 2, 3)},
}
