"""From masks to a plan: what goes, and what each tensor and module becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph import (
    Attribute,
    ChannelMap,
    ChannelNorm,
    ChannelOrder,
    Decision,
    Graph,
    Kept,
    Known,
    StandardWeight,
    Wiring,
    balances,
    decide,
    extend_masks,
    find_grouped,
    find_norm,
    find_standard,
    map_channels,
    new_indices,
    op_name,
    silence_norms,
    solve,
)
from nni_gconv.speedup.fold import shifts
from nni_gconv.speedup.grouping import Grouping, group_layers

#: What becomes of constants that masks leave, see :class:`nni_gconv.speedup.ModelSpeedup`.
Constants = Literal["both", "silence", "fold"]


@dataclass(frozen=True)
class TensorEdit:
    """How one parameter or buffer is cut.

    Attributes
    ----------
    keep : dict of int to list of int
        Dimension -> positions that stay, in their new order.
    columns : list of list of int, optional
        For a group convolution: what each group keeps of the weight's input positions, one list
        per group. Its filters are `keep` of dimension 0, group by group.
    """

    keep: dict[int, list[int]] = field(default_factory=dict)
    columns: list[list[int]] | None = None


@dataclass(frozen=True)
class Plan:
    """All edits that turn the dense model into the small one.

    Attributes
    ----------
    tensors : dict of str to TensorEdit
        Dotted name of a parameter or buffer -> its edit.
    pads : dict of str to list of int
        Dotted name of a padding module -> its new ``padding``.
    shifts : dict of str to list of float
        Dotted name of a layer -> what is added to its bias for constants that went.
    groups : tuple of Grouping
        Dense convolutions that become group convolutions.
    norms : dict of str to int
        Dotted name of a norm -> its number of channels, also where it has no weights.
    thinned : dict of str to ChannelNorm
        Dotted name of a norm over channels -> what it computes without those that went.
    standards : dict of str to StandardWeight
        Dotted name of a convolution that standardises its filters and loses columns -> how.
    indices : dict of str to list of int
        Dotted name of a buffer of positions -> the positions in the small model.
    attributes : dict of Attribute to int
        Integers of modules that a forward asks for -> what they are in the small model.
    factors : dict of str to list of float
        Weight -> what its columns are multiplied by: they read means of fewer channels.
    """

    tensors: dict[str, TensorEdit]
    pads: dict[str, list[int]]
    shifts: dict[str, list[float]]
    groups: tuple[Grouping, ...]
    norms: dict[str, int]
    thinned: dict[str, ChannelNorm]
    indices: dict[str, list[int]]
    attributes: dict[Attribute, int]
    factors: dict[str, list[float]] = field(default_factory=dict)
    standards: dict[str, StandardWeight] = field(default_factory=dict)

    def reckons_with(self, model: nn.Module) -> set[str]:
        """Name the weights whose values or type decide what comes of others, or that are scaled."""
        unbiased = (name for name in self.shifts if model.get_submodule(name).bias is None)
        return {*self.factors, *(f"{name}.weight" for name in (*unbiased, *self.standards))}


def make_plan(
    graph: Graph,
    channels: ChannelMap,
    kept: Kept,
    decision: Decision,
    order: ChannelOrder,
    groups: Sequence[Grouping] = (),
) -> Plan:
    """Turn a decision into edits of tensors and modules.

    Parameters
    ----------
    graph, channels
        The traced model and its channel map.
    kept : dict of str to bool Tensor
        Masks by parameter name.
    decision : Decision
        What goes.
    order : ChannelOrder
        In which order the rest stands.
    groups : sequence of Grouping
        Dense convolutions that become group convolutions.
    """
    removed = decision.removed
    tensors: dict[str, TensorEdit] = {}
    for axis in channels.axes.values():
        positions = order.positions(channels.of(axis.labels))
        if not np.array_equal(positions, np.arange(axis.labels.numel())):
            tensors.setdefault(axis.tensor, TensorEdit()).keep[axis.dim] = positions.tolist()
    for reading in channels.reads:
        if reading.groups == 1:
            continue
        positions = order.positions(channels.of(reading.labels))
        if np.array_equal(positions, np.arange(reading.labels.numel())):
            continue
        group_of, place = np.divmod(positions, reading.labels.numel() // reading.groups)
        columns = [place[group_of == group].tolist() for group in range(reading.groups)]
        name = graph.aliases[reading.weight][0]
        tensors[name] = TensorEdit(tensors.get(name, TensorEdit()).keep, columns)
    for grouping in groups:
        tensors[grouping.weight] = TensorEdit({0: grouping.rows}, grouping.columns)
        bias = graph.aliases.get(f"{grouping.module}.bias".lstrip("."))
        if bias is not None:
            tensors[bias[0]] = TensorEdit({0: grouping.rows})
    pads = {}
    for pad in channels.pads:
        widths = list(graph.modules[pad.module].padding)  # type: ignore[arg-type, union-attr]
        widths[pad.entry] = int((~removed[channels.of(pad.front)]).sum())
        widths[pad.entry + 1] = int((~removed[channels.of(pad.back)]).sum())
        pads[pad.module] = widths
    norms = {n.module: int((~removed[channels.of(n.labels)]).sum()) for n in channels.norms}
    shifted = {}
    for layer, shift in shifts(graph, channels, kept, removed, decision.given).items():
        edit = tensors.get(graph.aliases[f"{layer}.weight".lstrip(".")][0], TensorEdit())
        shifted[layer] = [shift[row] for row in edit.keep.get(0, range(len(shift)))]
    indices = new_indices(graph, channels, order)
    thinned = _thinned(graph, channels, removed)
    attributes = _attributes(graph, channels, removed)
    factors = _factors(graph, channels, removed)
    standards = _standards(graph, tensors)
    return Plan(
        tensors, pads, shifted, tuple(groups), norms, thinned, indices, attributes, factors,
        standards,
    )  # fmt: skip


def _standards(graph: Graph, tensors: Mapping[str, TensorEdit]) -> dict[str, StandardWeight]:
    """Find the convolutions that have to count what goes of their filters."""
    found, known = {}, Known()
    for node in graph.all_nodes:
        if node.op == "call_function" and op_name(node) == "standard_weight":
            weight: Any = node.args[0]
            edit = tensors.get(graph.aliases[graph.tensors[weight.name]][0])
            standard = find_standard(graph.modules[graph.owner(node)], known)
            if standard is not None and edit is not None and (1 in edit.keep or edit.columns):
                found[graph.owner(node)] = standard
    return found


def _factors(graph: Graph, channels: ChannelMap, removed: np.ndarray) -> dict[str, list[float]]:
    """What columns are multiplied by that read the mean of channels some of which went."""
    found: dict[str, list[float]] = {}
    for over in channels.means_over:
        share = float((~removed[channels.of(over.labels)]).mean())
        if share < 1:
            name = graph.aliases[over.weight][0]
            columns = graph.lookup(name).shape[1]
            found.setdefault(name, [1.0] * columns)[over.column] *= share
    return found


def _attributes(graph: Graph, channels: ChannelMap, removed: np.ndarray) -> dict[Attribute, int]:
    """What attributes have to be so that the forward asks for what is kept.

    Where no integers do, they stay: the run of the small model finds where they are asked for.
    """

    def old(attribute: Attribute) -> int:
        value = getattr(graph.modules[attribute.module], attribute.name)
        return int(value if attribute.place < 0 else value[attribute.place])

    asked = {use.total: int((~removed[channels.of(use.labels)]).sum()) for use in channels.sizes}
    return solve(asked, old) or {}


def _thinned(graph: Graph, channels: ChannelMap, removed: np.ndarray) -> dict[str, ChannelNorm]:
    """What norms over channels compute without those that went."""
    found, known = {}, Known()
    for over in channels.norms_over:
        stays = ~removed[channels.of(over.labels)]
        norm = find_norm(graph.modules[over.module], known)
        if norm is None or stays.all():
            continue
        # Of one that has been thinned before the first width is what it counts.
        width = norm.width if norm.width > 1 else len(stays)
        channel = 1 if norm.dims in ((), (1,)) else over.channel
        found[over.module] = replace(norm, channel=channel, width=width, kept=int(stays.sum()))
    return found


@dataclass(frozen=True)
class Cut:
    """A way to make a masked model small, and what it follows from.

    Attributes
    ----------
    channels : ChannelMap
        Of the dense model.
    kept : dict of str to bool Tensor
        Masks by parameter name, extended by what follows from them.
    zeroed : dict of str to Tensor
        Parameter -> positions that are masked in addition.
    decision : Decision
        What goes.
    order : ChannelOrder
        In which order the rest stands.
    plan : Plan
        What each tensor and module becomes.
    notes : tuple of str
        Layers whose masks leave groups and that stay dense, and why.
    """

    channels: ChannelMap
    kept: Kept
    zeroed: dict[str, Tensor]
    decision: Decision
    order: ChannelOrder
    plan: Plan
    notes: tuple[str, ...]


def plan_cut(
    graph: Graph,
    masks: Kept,
    wiring: Wiring,
    pins: Mapping[Node, str],
    *,
    constants: Constants,
    fold_permutations: bool,
) -> Cut:
    """Work out from masks how to make a model small.

    Parameters
    ----------
    graph : Graph
        The traced model.
    masks : dict of str to bool Tensor
        By parameter name.
    wiring : Wiring
        Of the same masks.
    pins : mapping of Node to str
        Operators whose inputs must keep their width, with the reason.
    constants : {"both", "silence", "fold"}
        What becomes of constants that masks leave: what is behind a masked filter is masked with
        it, or they go into the biases of their readers, or that where the first is not possible.
    fold_permutations : bool
        Channels may change places where that saves gathers.
    """
    channels = map_channels(graph, pin=pins.items())
    grouped = find_grouped(graph, channels, wiring)
    balanced = replace(channels, balances=(*channels.balances, *balances(channels, grouped)))
    kept, zeroed, decision = _decided(graph, balanced, masks, wiring, constants)
    groups, order, notes = group_layers(channels, decision.removed, grouped, fold=fold_permutations)
    plan = make_plan(graph, channels, kept, decision, order, groups)
    return Cut(channels, kept, zeroed, decision, order, plan, tuple(notes))


def _decided(
    graph: Graph, channels: ChannelMap, masks: Kept, wiring: Wiring, constants: Constants
) -> tuple[Kept, dict[str, Tensor], Decision]:
    """Find what goes, and what has to be masked beside the masks for it."""
    fold = constants != "silence"
    if constants == "fold":
        return masks, {}, decide(graph, channels, masks, wiring, fold=True)
    kept, zeroed = extend_masks(graph, channels, masks, wiring)
    decision = decide(graph, channels, kept, wiring, fold=fold)
    silent, shifts = silence_norms(graph, channels, kept, decision.removed)
    if shifts:
        further = decide(graph, channels, silent, wiring, fold=fold).removed
        for name, positions in shifts.items():
            # Where its channel stays all the same a shift counts for what else is in the channel.
            went = further[channels.of(channels.axes[name, 0].labels)][positions.numpy()]
            silent[name] = silent[name].index_fill(0, positions[~torch.from_numpy(went)], True)
            zeroed[name] = torch.cat([zeroed.get(name, positions[:0]), positions[went]])
        kept, decision = silent, decide(graph, channels, silent, wiring, fold=fold)
    return kept, {name: found for name, found in zeroed.items() if len(found)}, decision
