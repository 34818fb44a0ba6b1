"""Tensors made anew, and checks: operators that read shapes and no numbers."""

from __future__ import annotations

import torch
from torch.fx import Node

from nni_gconv.graph.channel_map import Fields
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import shape_of
from nni_gconv.graph.rules.registry import channel_rule, constant_rule, constants_unknown
from nni_gconv.graph.rules.state import State, Value

_CHECKS = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
_ANEW = ("new_zeros", "new_ones", "new_full", "new_empty")


@channel_rule(*_CHECKS)
def check(walker: Walker, node: Node) -> Fields:
    """What export wrote down for itself: reads no numbers."""
    return ()


@channel_rule("zeros_like", "ones_like", "empty_like", "full_like")
def like(walker: Walker, node: Node) -> Fields:
    """As wide as its argument, whatever that is."""
    return walker.fields(node.args[0])


@constant_rule("zeros_like")
def zeros_constants(_: State, node: Node) -> Value:
    """Zero everywhere."""
    return torch.zeros([1] * len(shape_of(node)), dtype=torch.float64)


@channel_rule(*_ANEW)
def anew(walker: Walker, node: Node) -> Fields:
    """Of the shape that is asked for; only the type is taken from the argument."""
    return ()


constants_unknown(*_CHECKS, *_ANEW, "ones_like", "empty_like", "full_like")
