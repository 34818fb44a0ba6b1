"""Pooling and resizing: each channel by itself, over the trailing dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from nni_gconv.graph.channel_map import Fields, varying
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule
from nni_gconv.graph.rules.state import State, Value, known, uniform
from nni_gconv.graph.trace import location

_SAMPLERS = {"grid_sampler": 2, "max_unpool2d": 2, "max_unpool3d": 3}
#: Operator -> how many trailing dimensions it works on.
_POOLS = {
    **{f"{kind}_pool{k}d": k for k in (1, 2, 3) for kind in ("max", "avg")},
    **{f"adaptive_{kind}_pool{k}d": k for k in (1, 2, 3) for kind in ("max", "avg")},
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    **{f"upsample_nearest{k}d": k for k in (1, 2, 3)},
    **{f"_upsample_nearest_exact{k}d": k for k in (1, 2, 3)},
    "upsample_linear1d": 1,
    **{f"upsample_{kind}2d": 2 for kind in ("bilinear", "bicubic")},
    **{f"_upsample_{kind}2d_aa": 2 for kind in ("bilinear", "bicubic")},
    "upsample_trilinear3d": 3,
}


@channel_rule(*_POOLS)
def pool(walker: Walker, node: Node) -> Any:
    """Each channel by itself; what runs along the pooled dimensions keeps its width."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - _POOLS[op_name(node)]
    for field in fields:
        if any(d >= first for d in varying(field)):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
    kept = tuple(f for f in fields if all(d < first for d in varying(f)))
    value = node.meta.get("val")
    return [kept for _ in value] if isinstance(value, list | tuple) else kept


@channel_rule(*_SAMPLERS)
def sample(walker: Walker, node: Node) -> Fields:
    """Each channel by itself, at places that all share (a grid) or that are its own (unpooling)."""
    x, places = node.args[:2]
    fields = walker.fields(x)
    for field in (*fields, *(walker.fields(places) if "grid" in op_name(node) else ())):
        if any(d >= 2 for d in varying(field)):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
    kept = [f for f in fields if all(d < 2 for d in varying(f))]
    if "unpool" in op_name(node):
        own, other = (walker.channel(a, 1, f"{location(node)}")[0] for a in (x, places))
        if own is not None and other is not None:
            walker.equal(own, other)
    return tuple(kept)


@constant_rule(*_SAMPLERS)
def sample_constants(state: State, node: Node) -> Value:
    """Zero stays zero; other constants meet zeros at the border and between places."""
    value = state.get(node.args[0])
    if value is None:
        return None
    value = uniform(value, range(2, value.dim()))
    return known(torch.where(value == 0, value, torch.nan))


@constant_rule(*_POOLS)
def pool_constants(state: State, node: Node) -> Any:
    """Follow what is one constant in space, through windows that keep it."""
    value, name = state.get(node.args[0]), op_name(node)
    if value is not None:
        value = uniform(value, range(value.dim() - _POOLS[name], value.dim()))
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
