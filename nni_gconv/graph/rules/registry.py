"""The table of rules, and which operators belong to which family.

A rule takes the walker and a node, may tie or pin labels, and returns the fields of the result.
The rules themselves stand in :mod:`nni_gconv.graph.rules.operators` (what has weights, what works
element by element) and :mod:`nni_gconv.graph.rules.moves` (what moves, pads, pools or sums up).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channels import Field, Walker, op_name, varying

__all__ = [
    "ELEMENTWISE_PRODUCTS",
    "MOVES",
    "PASSES",
    "POOLS",
    "RULES",
    "argument",
    "is_pointwise",
    "merge",
    "place",
    "rule",
]

Rule = Callable[[Walker, Node], Any]
RULES: dict[str, Rule] = {}

#: A zero factor makes these zero whatever the other factor is.
ELEMENTWISE_PRODUCTS = frozenset({"mul", "div"})
#: Element by element, though torch does not tag them so.
_POINTWISE = frozenset(
    "hardswish hardsigmoid hardtanh relu6 selu celu mish silu gelu leaky_relu elu softplus "
    "softsign logsigmoid log_sigmoid threshold tanhshrink hardshrink softshrink rrelu where "
    "masked_fill floor_divide rsub copy expand_as".split()
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
    "flip roll".split()
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


def place(labels: Tensor, rank: int, dim: int) -> Field:
    """View a label vector so that it runs along `dim` of a tensor of `rank` dimensions."""
    view = [1] * rank
    view[dim] = -1
    return labels.view(view)


def merge(walker: Walker, merged: list[Field], field: Field) -> None:
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
