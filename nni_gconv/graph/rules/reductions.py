"""Sums, means and the like over dimensions, and what mixes positions along one."""

from __future__ import annotations

import torch
from torch.fx import Node

from nni_gconv.graph.channels import Fields, Walker, varying
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule, constants_unknown
from nni_gconv.graph.rules.state import State, Value, known, uniform
from nni_gconv.graph.trace import location


@channel_rule("mean", "sum", "amax", "amin", "var", "std", "norm", "linalg_vector_norm")
def reduce(walker: Walker, node: Node) -> Fields:
    """Fields along the reduced dimensions are mixed; the others go through."""
    rank = len(shape_of(node.args[0]))
    dims = argument(node, 1, "dim")
    if op_name(node) in ("norm", "linalg_vector_norm"):
        dims = argument(node, 2, "dim")
    if isinstance(dims, bool):  # var(x, unbiased) and std(x, unbiased): over everything
        dims = None
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


@constant_rule("mean", "sum", "amax", "amin")
def reduce_constants(state: State, node: Node) -> Value:
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


constants_unknown("var", "std", "norm", "linalg_vector_norm")


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
