"""Sums, means and the like over dimensions, and what mixes positions along one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channel_map import Field, Fields, MeanOver, Mix, varying
from nni_gconv.graph.channels import Walker, run_on
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.pointwise import never_negative, pointwise, pointwise_constants
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule, constants_unknown
from nni_gconv.graph.rules.state import State, Value, channels_of, known, uniform
from nni_gconv.graph.trace import location

#: Reductions that zeros do not change; the largest value only where none is negative.
_NEUTRAL = frozenset({"sum", "norm", "linalg_vector_norm"})
_LARGEST = frozenset({"amax", "max"})
#: Through these a factor of a mean reaches the layer that can undo it.
_MOVES = frozenset(
    "cat view reshape flatten unflatten squeeze unsqueeze permute transpose slice clone".split()
)
_AVERAGES = frozenset({f"{kind}avg_pool{k}d" for kind in ("", "adaptive_") for k in (1, 2, 3)})
_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})


@channel_rule("mean", "sum", "amax", "amin", "var", "std", "norm", "linalg_vector_norm", "var_mean",
              "std_mean")  # fmt: skip
def reduce(walker: Walker, node: Node) -> Any:
    """Fields along the reduced dimensions are mixed; the others go through."""
    gone, rank = _reduced(node), len(shape_of(node.args[0]))
    value = node.meta.get("val")
    several = isinstance(value, list | tuple)
    keepdim = len(value[0].shape if several else shape_of(node)) == rank  # type: ignore[index]
    kept = []
    for field in walker.fields(node.args[0]):
        along = varying(field)
        if not gone & set(along):
            kept.append(field if keepdim else field.squeeze(tuple(gone)))
        elif len(along) == 1 and (_counts_no_zeros(node) or _divisor_kept(walker, node, field)):
            walker.mixes.append(Mix(node, field.reshape(-1), along[0]))
        else:
            walker.pin(field, f"{op_name(node)} over channels{_why(node)} at {location(node)}")
    return [tuple(kept) for _ in value] if several else tuple(kept)  # type: ignore[union-attr]


def _reduced(node: Node) -> set[int]:
    """Return the dimensions that a reduction does away with."""
    rank = len(shape_of(node.args[0]))
    at = 2 if op_name(node) in ("norm", "linalg_vector_norm") else 1
    dims = argument(node, at, "dim")
    if isinstance(dims, bool):  # var(x, unbiased) and std(x, unbiased): over everything
        dims = None
    if isinstance(dims, int):
        dims = [dims]
    return {d % rank for d in dims} if dims else set(range(rank))


def _counts_no_zeros(node: Node) -> bool:
    """Tell whether numbers that are zero make no difference to a reduction."""
    name = op_name(node)
    if name in ("norm", "linalg_vector_norm"):
        order = argument(node, 1, "ord", 2)
        return order is None or (isinstance(order, int | float) and order > 0)
    return name == "sum" or (name in _LARGEST and never_negative(node.args[0]))


def _why(node: Node) -> str:
    """Say what is in the way of a reduction that zeros may change."""
    if op_name(node) in _LARGEST:
        return " that may be negative, so that zeros count,"
    return ", whose divisor no layer behind it can keep," if op_name(node) == "mean" else ""


def _divisor_kept(walker: Walker, node: Node, field: Field) -> bool:
    """Tell whether the layers behind a mean can divide by what it divided by."""
    columns = _columns_of(walker, node) if op_name(node) == "mean" else []
    walker.means_over += [MeanOver(name, at, field.reshape(-1)) for name, at in columns]
    return bool(columns)


def _columns_of(walker: Walker, node: Node) -> list[tuple[str, int]]:
    """Find all columns of weights that read a value; none where something else reads it too."""
    marks = {node: torch.ones(shape_of(node), dtype=torch.bool)}
    found: list[tuple[str, int]] = []
    # Later operators come later; a value that nothing here moves has no users in `marks`.
    ahead = list(node.users)
    while ahead:
        user = ahead.pop(0)
        name = op_name(user)
        if name in _LAYERS:
            read = _marked_columns(walker, user, marks)
            if not read:
                return []
            found += read
            continue
        moved = _marks_behind(user, marks) if name in (*_MOVES, *_AVERAGES) else None
        if moved is None:
            return []
        marks[user] = moved
        ahead += [u for u in user.users if u not in ahead]
    return list(dict.fromkeys(found))


def _marks_behind(node: Node, marks: Mapping[Node, Tensor]) -> Tensor | None:
    """Follow marks through what moves numbers, or averages them in space."""
    if op_name(node) in _AVERAGES:
        mark = marks[node.args[0]]  # type: ignore[index]
        space = list(range(2, mark.dim()))
        same = bool((mark == mark.amax(space, keepdim=True)).all())
        return mark.amax(space, keepdim=True).expand(shape_of(node)) if same else None
    found = [marks.get(x, torch.zeros(shape_of(x), dtype=torch.bool)) for x in node.all_input_nodes]
    result = run_on(node, found)
    return result if isinstance(result, Tensor) else None


def _marked_columns(
    walker: Walker, node: Node, marks: Mapping[Node, Tensor]
) -> list[tuple[str, int]]:
    """Return the columns of a layer's own weight, which no other layer has, that read marks."""
    x, weight = node.args[:2]
    name = walker.parameter(weight)
    alone = name is not None and len(weight.users) == 1  # type: ignore[union-attr]
    linear = op_name(node) == "linear"
    if not alone or x not in marks or not (linear or argument(node, 6, "groups", 1) == 1):
        return []
    by_column = marks[x].movedim(-1 if linear else 1, 0).flatten(1)  # type: ignore[index]
    if not bool((by_column == by_column[:, :1]).all()):
        return []
    return [(str(name), int(at)) for at in by_column[:, 0].nonzero()]


@channel_rule("max", "min")
def extremes(walker: Walker, node: Node) -> Any:
    """The larger of two tensors, or the largest number along a dimension, with its place."""
    if len(node.args) > 1 and isinstance(node.args[1], Node):
        return pointwise(walker, node)
    if not isinstance(node.meta.get("val"), list | tuple):
        return reduce(walker, node)
    placed = any(u.args[1] == 1 and u.users for u in node.users if op_name(u) == "getitem")
    if placed:  # places of channels are others in a smaller model
        dim = next(iter(_reduced(node)))
        for field in walker.fields(node.args[0]):
            if dim in varying(field):
                walker.pin(field, f"places of channels taken at {location(node)}")
    return reduce(walker, node)


@constant_rule("mean", "sum", "amax", "amin", "norm", "linalg_vector_norm")
def reduce_constants(state: State, node: Node) -> Value:
    """The mean of a constant is that constant, if it is one along all that is reduced."""
    value, gone = _given(state, node), tuple(_reduced(node))
    if value is None:
        return None
    value = uniform(value, gone)
    if op_name(node) not in ("mean", "amax", "amin"):
        value = torch.where(value == 0, value, torch.nan)
    same = len(shape_of(node)) == len(shape_of(node.args[0]))
    return known(value if same else value.squeeze(gone))


@constant_rule("max", "min")
def extremes_constants(state: State, node: Node) -> Any:
    """As the operator of which it is a form."""
    if len(node.args) > 1 and isinstance(node.args[1], Node):
        return pointwise_constants(state, node)
    value, gone = _given(state, node), tuple(_reduced(node))
    results = node.meta.get("val")
    several = isinstance(results, list | tuple)
    if value is None:
        return [None, None] if several else None
    value = uniform(value, gone)
    rank = len(results[0].shape if several else shape_of(node))  # type: ignore[index]
    value = known(value if rank == value.dim() else value.squeeze(gone))
    return [value, None] if several else value


def _given(state: State, node: Node) -> Value:
    """Return what is known of what is reduced, and note it for each place of a channel."""
    x = node.args[0]
    for dim in _reduced(node):
        state.given[node, dim] = channels_of(state, x, dim)
    return state.get(x)


@constant_rule("var", "std", "var_mean", "std_mean")
def spread_constants(state: State, node: Node) -> Any:
    """Nothing is known of a variance: over channels it counts the constants too."""
    _given(state, node)
    results = node.meta.get("val")
    return [None for _ in results] if isinstance(results, list | tuple) else None


@channel_rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "sort", "topk")
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


constants_unknown("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "sort", "topk")
