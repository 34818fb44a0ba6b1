"""From masks to a plan: which channels go, and what each tensor and module becomes.

A class of channels goes when nothing can tell: every layer that reads it reads zero or reads it
through masked weights. The decision is repeated until it settles, since a layer that goes stops
reading. Groups stay balanced and nothing becomes empty; what has to stay for that stays as zeros,
which is exact, only not as small as the masks asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.speedup.channels import ChannelMap, Read, lookup
from nni_gconv.speedup.constants import given_values
from nni_gconv.speedup.fold import foldable, shift_bias, shifts
from nni_gconv.speedup.trace import Graph
from nni_gconv.speedup.wiring import Wiring

__all__ = [
    "Decision",
    "Plan",
    "Replaced",
    "TensorEdit",
    "apply_plan",
    "decide",
    "make_plan",
    "silence",
]

Kept = dict[str, Tensor]


@dataclass(frozen=True)
class TensorEdit:
    """How one parameter or buffer is cut.

    Attributes
    ----------
    keep : dict of int to list of int
        Dimension -> positions that stay, in their new order.
    columns : list of list of int, optional
        For a grouped convolution: the input positions each group keeps, one list per group.
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
    """

    tensors: dict[str, TensorEdit]
    pads: dict[str, list[int]]
    shifts: dict[str, list[float]]


@dataclass(frozen=True)
class Decision:
    """Outcome of :func:`decide`.

    ``removed`` is bool per class, ``held`` says what stayed and why, ``given`` is what is known of
    the channels that layers read.
    """

    removed: np.ndarray
    held: dict[str, int]
    given: dict[Node, Tensor]


def silence(
    graph: Graph, channels: ChannelMap, kept: Kept, wiring: Wiring
) -> tuple[Kept, dict[str, Tensor]]:
    """Extend masks that silence only filters to all that acts behind the filter.

    A class all of whose filters are masked is meant to be gone; its biases and the scale and shift
    of the norms behind it are masked with it.

    Returns
    -------
    kept : dict of str to bool Tensor
        The extended masks.
    added : dict of str to Tensor
        Parameter -> positions that this masked in addition.
    """
    gone = _all_rows_masked(channels, wiring, kept) & ~_pinned(channels)
    extended = dict(kept)
    added: dict[str, Tensor] = {}
    for axis in channels.axes.values():
        if axis.role not in ("bias", "scale"):
            continue
        quiet = torch.from_numpy(gone[channels.of(axis.labels)])
        if not bool(quiet.any()):
            continue
        for name in graph.aliases[axis.tensor]:
            tensor = lookup(graph, name)
            before = extended.get(name, torch.ones(tensor.shape, dtype=torch.bool))
            view = [1] * tensor.dim()
            view[axis.dim] = -1
            after = before & ~quiet.view(view)
            if not torch.equal(before, after):
                extended[name] = after
                added[name] = (before & ~after).nonzero()[:, axis.dim].unique()
    return extended, added


def _pinned(channels: ChannelMap) -> np.ndarray:
    pinned = np.zeros(int(channels.classes.max(initial=-1)) + 1, dtype=bool)
    pinned[list(channels.pinned)] = True
    return pinned


def _all_rows_masked(channels: ChannelMap, wiring: Wiring, kept: Kept) -> np.ndarray:
    """Tell for each class whether it has filters and every one of them is masked whole."""
    count = int(channels.classes.max(initial=-1)) + 1
    has_row, has_live = np.zeros(count, bool), np.zeros(count, bool)
    for axis in channels.axes.values():
        if axis.role != "row":
            continue
        of = channels.of(axis.labels)
        has_row[of] = True
        live = np.ones(len(of), bool)
        if axis.tensor in kept:
            live = wiring.of(axis.tensor).any(1 - axis.dim).numpy()
        has_live[of[live]] = True
    return has_row & ~has_live


def decide(
    graph: Graph, channels: ChannelMap, kept: Kept, wiring: Wiring, *, fold: bool = False
) -> Decision:
    """Find the classes that can go without changing any output.

    Parameters
    ----------
    graph, channels
        The traced model and its channel map.
    kept : dict of str to bool Tensor
        Masks: True where a parameter is kept.
    wiring : Wiring
        Of the same masks.
    fold : bool
        Count a channel with a constant value other than zero as removable where every reader can
        take the constant into its bias exactly.
    """
    pinned = _pinned(channels)
    removed = np.zeros_like(pinned)
    held: dict[str, int] = {}
    # A constant is worth what it is in the masked model, whatever goes of the layers behind it.
    given = given_values(graph, kept, wiring)
    asked, with_rows = _all_rows_masked(channels, wiring, kept), _with_rows(channels)
    while True:
        read, alive = np.zeros_like(pinned), pinned.copy()
        for reading in channels.reads:
            of = channels.of(reading.labels)
            read[of] = True
            needed = _needed(channels, reading, wiring, removed) & (given[reading.node] != 0)
            if fold:
                needed &= ~foldable(graph, channels, reading, given)
            alive[of[needed.numpy()]] = True
        candidates = ~alive & (read | asked) & with_rows
        settled, held = _settle(channels, candidates, removed)
        if np.array_equal(settled, removed):
            return Decision(removed, held, given)
        removed = settled


def _with_rows(channels: ChannelMap) -> np.ndarray:
    found = np.zeros(int(channels.classes.max(initial=-1)) + 1, bool)
    for axis in channels.axes.values():
        if axis.role == "row":
            found[channels.of(axis.labels)] = True
    return found


def _needed(channels: ChannelMap, reading: Read, wiring: Wiring, removed: np.ndarray) -> Tensor:
    """Tell for each channel a layer reads whether it reaches a filter that stays: bool."""
    connected = wiring.of(reading.weight, reading.transposed)
    rows = channels.axes.get((reading.weight, 1 if reading.transposed else 0))
    if rows is not None:
        # A filter that goes reads no more; what only it reads can go with it.
        stays = torch.from_numpy(~removed[channels.of(rows.labels)])
        connected = connected & stays[:, None]
    if reading.groups > 1:
        return connected.view(reading.groups, -1, connected.shape[1]).any(1).reshape(-1)
    return connected.any(0)


def _settle(
    channels: ChannelMap, candidates: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Keep as many in every block of a group and at least one on every axis.

    What was removed `before` stays removed: it is balanced as it is, and the search must not turn
    in circles.
    """
    removed = candidates | before
    held: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for axis in channels.axes.values():
            of = channels.of(axis.labels)
            if len(of) and bool(removed[of].all()):
                removed[of[~before[of]][0]] = False
                held[f"{axis.tensor}: one channel stays, none would be left"] = 1
                changed = True
        # Small blocks first: what they hold back is often all that larger ones ask for.
        for balance in sorted(channels.balances, key=lambda b: -int(b.blocks.max())):
            of = channels.of(balance.labels)
            blocks = balance.blocks.numpy()
            counts = np.bincount(blocks, weights=~removed[of]).astype(int)
            for block in np.flatnonzero(counts < counts.max()):
                # The last channels that would go stay, as zeros, so that blocks are equally wide.
                gone = of[(blocks == block) & removed[of] & ~before[of]]
                back = np.unique(gone)[-(counts.max() - counts[block]) :]
                removed[back] = False
                key = f"{balance.where}: channels stay so that groups are equally wide"
                held[key] = held.get(key, 0) + len(back)
                changed = True
    return removed, held


def make_plan(graph: Graph, channels: ChannelMap, kept: Kept, decision: Decision) -> Plan:
    """Turn a decision into edits of tensors and modules."""
    removed = decision.removed
    tensors: dict[str, TensorEdit] = {}
    for axis in channels.axes.values():
        stays = ~removed[channels.of(axis.labels)]
        if bool(stays.all()):
            continue
        edit = tensors.setdefault(axis.tensor, TensorEdit())
        edit.keep[axis.dim] = np.flatnonzero(stays).tolist()
    for reading in channels.reads:
        stays = ~removed[channels.of(reading.labels)]
        if reading.groups > 1 and not bool(stays.all()):
            columns = [
                np.flatnonzero(block).tolist() for block in stays.reshape(reading.groups, -1)
            ]
            name = graph.aliases[reading.weight][0]
            previous = tensors.get(name, TensorEdit())
            tensors[name] = TensorEdit(previous.keep, columns)
    pads = {}
    for pad in channels.pads:
        widths = list(graph.modules[pad.module].padding)  # type: ignore[arg-type, union-attr]
        widths[pad.entry] = int((~removed[channels.of(pad.front)]).sum())
        widths[pad.entry + 1] = int((~removed[channels.of(pad.back)]).sum())
        pads[pad.module] = widths
    return Plan(tensors, pads, shifts(graph, channels, kept, decision.removed, decision.given))


@dataclass(frozen=True)
class Replaced:
    """A tensor of the model, what took its place, and how the one became the other."""

    old: Tensor
    new: Tensor
    edit: TensorEdit | None
    kept: Tensor | None

    def cut(self, tensor: Tensor) -> Tensor:
        """Do to a tensor of the old shape what was done to the old tensor."""
        return cut_tensor(tensor, self.edit, self.kept)


def apply_plan(
    model: nn.Module, graph: Graph, plan: Plan, kept: Mapping[str, Tensor]
) -> list[Replaced]:
    """Cut a model in place: masked weights, fewer channels, plain torch modules.

    The model's class and forward stay; only parameters, buffers and the width attributes of its
    layers change.

    Returns
    -------
    list of Replaced
        One for each tensor that is another one now.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    # Both tensors of a pair stay alive here: another one in their memory would look like them.
    by_old: dict[int, Replaced] = {}
    by_new: dict[int, Replaced] = {}
    for name in sorted({*plan.tensors, *kept}):
        for alias in graph.aliases[name]:
            path, _, attribute = alias.rpartition(".")
            module = modules[path]
            old = getattr(module, attribute)
            if id(old) in by_new:  # the module has several names and was met under another
                continue
            if id(old) not in by_old:  # else it is tied to a tensor that is cut already
                made = _replacement(old, plan.tensors.get(name), kept.get(name))
                by_old[id(old)] = by_new[id(made.new)] = made
            _assign(module, attribute, by_old[id(old)].new)
    for layer, shift in plan.shifts.items():
        shift_bias(modules[layer], shift)
    for module in modules.values():
        _set_widths(module)
    for name, padding in plan.pads.items():
        modules[name].padding = tuple(padding)  # type: ignore[assignment]
    return list(by_old.values())


def _replacement(old: Tensor, edit: TensorEdit | None, kept: Tensor | None) -> Replaced:
    new = cut_tensor(old.detach(), edit, kept).clone(memory_format=torch.preserve_format)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    return Replaced(old, new, edit, kept)


def _assign(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module._parameters[attribute] = tensor
    else:
        module._buffers[attribute] = tensor


def cut_tensor(tensor: Tensor, edit: TensorEdit | None, kept: Tensor | None = None) -> Tensor:
    """Mask a tensor and apply one edit to it."""
    if kept is not None:
        tensor = tensor * kept.to(tensor.device)
    if edit is None:
        return tensor
    if edit.columns is not None:
        groups = len(edit.columns)
        rows = tensor.shape[0] // groups
        index = torch.tensor(edit.columns, device=tensor.device).repeat_interleave(rows, dim=0)
        view = (*index.shape, *[1] * (tensor.dim() - 2))
        tensor = tensor.gather(1, index.view(view).expand(-1, -1, *tensor.shape[2:]))
    for dim, keep in edit.keep.items():
        tensor = tensor.index_select(dim, torch.tensor(keep, device=tensor.device))
    return tensor


def _set_widths(module: nn.Module) -> None:
    """Make the width attributes of a layer say what its tensors hold."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(weight, Tensor):
        if module.groups > 1 and weight.shape[1] == 1 and module.in_channels == module.groups:
            multiplier = module.out_channels // module.groups
            module.groups = weight.shape[0] // multiplier
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        reference = weight if isinstance(weight, Tensor) else module.running_mean
        if isinstance(reference, Tensor):
            module.num_features = reference.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
