"""Norms: by channel, by group of channels, over channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channel_map import Fields, Mix, NormOver, NormWidth, place, varying
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule, constants_unknown
from nni_gconv.graph.rules.state import State, Value, channels_of, per_channel, uniform
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


@channel_rule("channel_norm")
def norm_over_channels(walker: Walker, node: Node) -> Fields:
    """A module that is a norm over channels can count zeros that are not there any more."""
    x, dims = node.args[0], list(node.args[3])  # type: ignore[arg-type]
    reason = f"channels mixed with space at {location(node)}"
    own, rest = walker.channel(x, dims[0], reason)
    rank = len(shape_of(x))
    # A response is a channel's norm over all of space.
    mixed = set(range(1, rank)) if _is_response(node) else set(dims)
    for field in rest:
        if mixed & set(varying(field)):
            walker.pin(field, f"normalised over channels at {location(node)}")
    if own is None:
        return walker.fields(x)
    for parameter in node.args[1:3]:
        name = walker.parameter(parameter)
        if name is not None:
            walker.equal(walker.axis(name, _axis(parameter, rank, dims[0]), "scale"), own)
        elif parameter is not None:
            walker.pin(own, f"normalised with computed weights at {location(node)}")
    module = walker.graph.caller(node)
    for other in walker.norms_over:  # the module is called again: one width for all calls
        if walker.graph.modules[other.module] is module and other.labels.shape == own.shape:
            walker.equal(other.labels, own)
        elif walker.graph.modules[other.module] is module:
            walker.pin(torch.cat([own, other.labels]), f"two widths at {location(node)}")
    walker.mixes.append(Mix(node, own))
    walker.norms_over.append(NormOver(walker.graph.owner(node), own, dims[0] - rank))
    return walker.fields(x)


@constant_rule("channel_norm")
def norm_over_channels_constants(state: State, node: Node) -> Value:
    """A masked scale leaves the shift; without a mean to subtract zero stays zero."""
    x, dim = node.args[0], int(node.args[3][0])  # type: ignore[arg-type, index]
    given = state.given[node, 0] = channels_of(state, x, dim)
    rank, rows = len(shape_of(x)), []
    for argument_ in node.args[1:3]:
        parameter = state.parameter(argument_)
        axis = _axis(argument_, rank, dim) if parameter is not None else 0
        rows.append(None if parameter is None else _by_channel(*parameter, axis))
    if not _anything_known(state, node, rows[0]):
        return None
    if _is_response(node):  # what comes in is added: without it only the shift is left
        out = torch.where(given == 0, 0.0, torch.nan)
        return per_channel(_affine(out, None, rows[1]), rank, dim)
    centered = bool(node.args[5])
    out = torch.where((given == 0) & (not centered), 0.0, torch.nan)
    return per_channel(_affine(out, *rows), rank, dim)


def _is_response(node: Node) -> bool:
    return bool(node.args[7])


def _axis(parameter: Any, rank: int, dim: int) -> int:
    """Return the axis of a scale or shift that acts along a dimension of the value."""
    own = len(shape_of(parameter))
    return 0 if own == 1 else dim - rank + own


def _by_channel(values: Tensor, kept: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Reduce a scale or shift to one number for each channel, NaN where it has several."""
    rest = [d for d in range(values.dim()) if d != axis]
    if not rest:
        return values, kept
    return uniform(values, rest).reshape(-1), kept.movedim(axis, 0).flatten(1).any(1)


@channel_rule("layer_norm", "rms_norm")
def layer_norm(walker: Walker, node: Node) -> Fields:
    """Statistics over the trailing dimensions, called from a forward that does more."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - len(node.args[1])  # type: ignore[arg-type]
    for field in fields:
        if any(d >= first for d in varying(field)):
            why = f"normalised over channels by a function at {location(node)}"
            walker.pin(field, f"{why} (a module such as nn.LayerNorm could be cut)")
    return fields


constants_unknown("layer_norm", "rms_norm")


# -- filters that are standardised ----------------------------------------------------------------


@channel_rule("standard_weight")
def standard_weight(walker: Walker, node: Node) -> Fields:
    """A filter by itself: what goes of it is counted on, see :class:`KeptStandardConv2d`."""
    weight, gain, rest = node.args[:3]
    name = walker.parameter(weight)
    if name is None:
        return walker.opaque(node)
    rank, rows = len(shape_of(node)), walker.axis(name, 0, "row")
    for tensor in (gain, rest):  # a filter is zero when what went of it is masked, too
        own = walker.parameter(tensor)
        if own is not None:
            walker.equal(walker.axis(own, 0, "scale"), rows)
    module: Any = walker.graph.caller(node)
    if module.groups > 1 or shape_of(node)[1] == 1:
        return (place(rows, rank, 0),)
    return (place(rows, rank, 0), place(walker.axis(name, 1, "column"), rank, 1))


@constant_rule("standard_weight")
def standard_weight_constants(state: State, node: Node) -> Value:
    """A filter that is masked whole, with what went of it, is zero; so is one without a gain."""

    def masked(tensor: Any) -> Tensor:
        found = state.parameter(tensor)
        assert found is not None, "it is a tensor of the model"
        return ~found[1].flatten(1).any(1)

    weight, gain, rest = node.args[:3]
    if state.name(weight) is None:
        return None
    quiet = masked(weight) if rest is None else masked(weight) & masked(rest)
    quiet = quiet if state.name(gain) is None else quiet | masked(gain)
    return per_channel(torch.where(quiet, 0.0, torch.nan), len(shape_of(node)), 0)


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
