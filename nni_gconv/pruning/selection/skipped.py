"""Layers that keep their channels although they were selected, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from nni_gconv.config_list import LayerConfig
from nni_gconv.graph import CoupledSet, Coupling, given_values


def find_skipped(
    coupling: Coupling, layers: Mapping[str, LayerConfig], excluded: Collection[str]
) -> tuple[list[CoupledSet], dict[str, str]]:
    """Divide coupled sets into those that may lose channels and those that keep them.

    Parameters
    ----------
    coupling : Coupling
        The traced model.
    layers : mapping of str to LayerConfig
        The layers that were selected.
    excluded : collection of str
        Those that the config_list excludes by name.

    Returns
    -------
    sets : list of CoupledSet
        Those that may.
    skipped : dict of str to str
        Selected layers of the others, each with the reason.
    """
    reasons = [_reason(coupled, layers, excluded) for coupled in coupling.sets]
    going = coupling.empty()
    for coupled, reason in zip(coupling.sets, reasons, strict=True):
        going[coupled.classes] = reason is None
    readers = loud(coupling, going)
    sets: list[CoupledSet] = []
    skipped: dict[str, str] = {}
    for coupled, known in zip(coupling.sets, reasons, strict=True):
        reader = next((readers[c] for c in coupled.classes.tolist() if c in readers), None)
        reason = known
        if reason is None and reader is not None:
            reason = f"what follows it turns a masked channel into a constant that {reader} reads"
        if reason is None:
            sets.append(coupled)
            continue
        for name in (m.module for m in coupled.members if m.module in layers):
            skipped.setdefault(name, reason)
    return sets, skipped


def _reason(
    coupled: CoupledSet, layers: Mapping[str, LayerConfig], excluded: Collection[str]
) -> str | None:
    outside = [m.module for m in coupled.members if m.module not in layers]
    if coupled.reason is None and outside:
        how = "excludes" if outside[0] in excluded else "does not select"
        return f"its channels are coupled to {outside[0]}, which the config_list {how}"
    return coupled.reason


def loud(coupling: Coupling, going: np.ndarray) -> dict[int, str]:
    """Find classes that are not silent although all that acts on them is masked.

    ``sigmoid(0)`` is 0.5, and a batch norm without scale and shift emits what its mean is: a layer
    that reads such a channel reads a constant, and the channel cannot be removed.

    Parameters
    ----------
    coupling : Coupling
        The traced model.
    going : ndarray of bool, shape (classes,)
        The classes that a pruner may remove.

    Returns
    -------
    dict of int to str
        Class -> the layer that would read a constant.
    """
    kept = {
        f"{module}.{target}": mask != 0
        for module, targets in coupling.masks(going).items()
        for target, mask in targets.items()
    }
    given = given_values(coupling.graph, kept)
    found: dict[int, str] = {}
    readers: list[Any] = [*coupling.channels.reads, *coupling.channels.mixes]
    for read in readers:
        classes = coupling.channels.of(read.labels).reshape(-1)
        zero = (given[read.node] == 0).numpy()
        for number in classes[~zero & going[classes]]:
            found.setdefault(int(number), coupling.graph.owner(read.node))
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
