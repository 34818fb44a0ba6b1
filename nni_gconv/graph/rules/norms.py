"""Norms: by channel, by group of channels, over channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channels import Fields, NormWidth, Walker, varying
from nni_gconv.graph.recorder import shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule, constants_unknown
from nni_gconv.graph.rules.state import State, Value, channels_of, per_channel
from nni_gconv.graph.trace import location

# -- each channel by itself -----------------------------------------------------------------------


@channel_rule("batch_norm", "instance_norm")
def channel_norm(walker: Walker, node: Node) -> Fields:
    """Scale, shift and statistics belong to the channel they act on."""
    own, rest = walker.channel(node.args[0], 1, f"channels mixed with space at {location(node)}")
    for tensor, role in zip(node.args[1:5], ("scale", "scale", "stat", "stat"), strict=False):
        name = walker.parameter(tensor)
        if name is not None and own is not None:
            walker.equal(walker.axis(name, 0, role), own)
    if argument(node, 5, "training"):  # of both: statistics of the values themselves
        for field in rest:
            walker.pin(field, f"normalised over channels at {location(node)}")
    _norm_width(walker, node, own)
    return walker.fields(node.args[0])


@constant_rule("batch_norm", "instance_norm")
def channel_norm_constants(state: State, node: Node) -> Value:
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
    return per_channel(_affine(out, scale, shift), len(shape_of(node)), 1)


# -- groups of channels ---------------------------------------------------------------------------


@channel_rule("group_norm")
def group_norm(walker: Walker, node: Node) -> Fields:
    """The channels that are normalised together go together, as a group fewer."""
    x, groups = node.args[0], int(node.args[1])  # type: ignore[arg-type]
    own, rest = walker.channel(x, 1, f"channels mixed with space at {location(node)}")
    for field in rest:
        if any(d > 1 for d in varying(field)):
            walker.pin(field, f"normalised over channels at {location(node)}")
    if own is None:
        return walker.fields(x)
    for position, key in ((2, "weight"), (3, "bias")):
        name = walker.parameter(argument(node, position, key))
        if name is not None:
            walker.equal(walker.axis(name, 0, "scale"), own)
    module = walker.graph.caller(node)
    if groups == 1:
        walker.pin(own, f"normalised over channels at {location(node)}")
    elif isinstance(module, nn.GroupNorm) and module.num_groups == groups:
        parts = own.view(groups, -1)
        walker.equal(parts[:, :1], parts)
    else:
        walker.pin(own, f"the number of groups is written in the forward at {location(node)}")
    _norm_width(walker, node, own)
    return walker.fields(x)


@constant_rule("group_norm")
def group_norm_constants(state: State, node: Node) -> Value:
    """As other norms, where all channels that are normalised together are one constant."""
    scale, shift = (state.parameter(argument(node, i, n)) for i, n in ((2, "weight"), (3, "bias")))
    if not _anything_known(state, node, scale):
        return None
    parts = channels_of(state, node.args[0], 1).view(int(node.args[1]), -1)  # type: ignore[arg-type]
    out = torch.where((parts == parts[:, :1]).all(1, keepdim=True), 0.0, torch.nan)
    return per_channel(
        _affine(out.expand_as(parts).reshape(-1), scale, shift), len(shape_of(node)), 1
    )


# -- over all channels ----------------------------------------------------------------------------


@channel_rule("layer_norm", "rms_norm")
def layer_norm(walker: Walker, node: Node) -> Fields:
    """Statistics over the trailing dimensions: what varies there keeps its width."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - len(node.args[1])  # type: ignore[arg-type]
    for field in fields:
        if any(d >= first for d in varying(field)):
            walker.pin(field, f"normalised over channels at {location(node)}")
    return fields


constants_unknown("layer_norm", "rms_norm")


# -- what they share ------------------------------------------------------------------------------


def _norm_width(walker: Walker, node: Node, own: Tensor | None) -> None:
    module = walker.graph.caller(node)
    if own is not None and isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        walker.norms.append(NormWidth(walker.graph.owner(node), own))


def _anything_known(state: State, node: Node, scale: tuple[Tensor, Tensor] | None) -> bool:
    masked = scale is not None and not bool(scale[1].all())
    return masked or state.get(node.args[0]) is not None


def _affine(
    value: Tensor, scale: tuple[Tensor, Tensor] | None, shift: tuple[Tensor, Tensor] | None
) -> Tensor:
    if scale is not None:
        value = torch.where(scale[1], value * scale[0], 0.0)
    return value if shift is None else value + shift[0]
