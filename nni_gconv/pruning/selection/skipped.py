"""Layers that keep their channels although they were selected, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv import compat
from nni_gconv.graph import CoupledSet, Coupling, Read, foldable, given_values, known_values


def find_skipped(
    coupling: Coupling, layers: Collection[str]
) -> tuple[list[CoupledSet], dict[str, str]]:
    """Divide coupled sets into those that may lose channels and those that keep them.

    Parameters
    ----------
    coupling : Coupling
        The traced model, its sets with their reasons.
    layers : collection of str
        The layers that were selected.

    Returns
    -------
    sets : list of CoupledSet
        Those that may.
    skipped : dict of str to str
        Selected layers of the others, each with the reason.
    """
    skipped: dict[str, str] = {}
    for coupled in coupling.sets:
        for name in (m.module for m in coupled.members if m.module in layers):
            if coupled.reason is not None:
                skipped.setdefault(name, coupled.reason)
    known = {m.module for coupled in coupling.sets for m in coupled.members}
    for name in layers:
        if not known & set(_names(coupling, name)):
            skipped.setdefault(name, _unseen(coupling, name))
    return [coupled for coupled in coupling.sets if coupled.reason is None], skipped


def _names(coupling: Coupling, name: str) -> list[str]:
    """Names of the layers that have the weight of a layer; its own."""
    shared = coupling.graph.aliases.get(f"{name}.weight", (f"{name}.weight",))
    return [weight.removesuffix(".weight") for weight in shared]


def _unseen(coupling: Coupling, name: str) -> str:
    """Say why a layer makes no channels that could be followed."""
    modules, computed = coupling.graph.modules, coupling.channels.computed
    if f"{name}.weight" in coupling.graph.unused:
        return "it is not used by the forward"
    where = next((r for n, r in computed.items() if modules.get(n) is modules[name]), None)
    kind = type(modules[name]).__name__
    return "it computes its weight" + (f", of a {kind}, {where}" if where else "")


def loud(coupling: Coupling, going: np.ndarray, unmasked: Collection[str] = ()) -> dict[int, str]:
    """Find classes that are not silent although all that acts on them is masked.

    ``sigmoid(0)`` is 0.5, and a batch norm without scale and shift emits what its mean is: a layer
    that reads such a channel reads a constant. Where its bias can take that, the channel can be
    removed all the same.

    Parameters
    ----------
    coupling : Coupling
        The traced model.
    going : ndarray of bool, shape (classes,)
        The classes that a pruner may remove.
    unmasked : collection of str
        Modules that get no masks.

    Returns
    -------
    dict of int to str
        Class -> the layer that would read a constant.
    """
    found: dict[int, str] = {}
    readers: list[Any] = [*coupling.channels.reads, *coupling.channels.mixes]
    for part in halves(coupling, going):
        given = given_values(coupling.graph, silencing_masks(coupling, part, unmasked))
        for read in readers:
            classes = coupling.channels.of(read.labels).reshape(-1)
            quiet = given[read.key] == 0
            if isinstance(read, Read):
                quiet = quiet | foldable(coupling.graph, coupling.channels, read, given)
            for number in classes[~quiet.numpy() & part[classes]]:
                found.setdefault(int(number), coupling.graph.owner(read.node))
    return found


def halves(coupling: Coupling, going: np.ndarray) -> list[np.ndarray]:
    """Every second channel of each set, and the others.

    With all of them masked much is a constant that is none beside channels that stay.
    """
    parts = []
    for first in range(2):
        part = coupling.empty()
        for coupled in coupling.sets:
            part[coupled.classes[first::2]] = True
        parts.append(part & going)
    return parts


def silencing_masks(
    coupling: Coupling, going: np.ndarray, unmasked: Collection[str] = ()
) -> dict[str, Tensor]:
    """Bool masks by parameter of what a pruner zeroes with some classes; as for :func:`loud`."""
    return {
        f"{module}.{target}": mask != 0
        for module, targets in coupling.masks(going).items()
        if module not in unmasked
        for target, mask in targets.items()
        if compat.is_maskable(coupling.graph.modules[module], target)
    }


def norms_of_others(coupling: Coupling, going: np.ndarray, unmasked: Collection[str]) -> set[str]:
    """Norms behind what gets no masks: what they read of these classes is not known.

    Parameters and classes as for :func:`loud`.
    """
    graph, channels = coupling.graph, coupling.channels
    found: set[str] = set()
    while True:
        values = known_values(graph, silencing_masks(coupling, going, {*unmasked, *found}))
        before = len(found)
        for node in graph.all_nodes:
            owner = graph.owner(node)
            axis = channels.axes.get((f"{owner}.weight", 0))
            if axis is None or axis.role != "scale" or not isinstance(node.args[0], Node):
                continue
            if not going[channels.of(axis.labels)].any():
                continue
            value = values.get(node.args[0])
            unknown = torch.ones(1, dtype=torch.bool)
            if isinstance(value, Tensor) and value.dim() > 1:
                unknown = value.isnan().movedim(1, 0).flatten(1).any(1)
            loud_there = unknown.expand(axis.labels.numel()).numpy()
            if (loud_there & going[channels.of(axis.labels)]).any():
                found.add(owner)
        if len(found) == before:
            return found


def listed(names: list[str]) -> str:
    """Name the first three and count the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_reason(skipped: Mapping[str, str]) -> str:
    """Say of the first layer why it keeps its channels."""
    name, reason = next(iter(skipped.items()), ("the model", "no layer was selected"))
    return f"{name}: {reason}"


def main_reasons(skipped: Mapping[str, str]) -> str:
    """Say why most layers are left out: the two commonest reasons, each with its layers.

    Examples
    --------
    >>> main_reasons({"a": "too small", "b": "too odd", "c": "too odd"})
    'b, c: too odd; a: too small'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    common = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:2]
    return "; ".join(f"{listed(names)}: {reason}" for reason, names in common)


def skip_lines(skipped: Mapping[str, str]) -> list[str]:
    """One line for each reason, with the layers that it keeps whole."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"not pruned: {listed(names)}: {reason}" for reason, names in by_reason.items()]
