"""Which coupled sets may lose channels: those that are selected, silent when masked, and can go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from nni_gconv.errors import SpeedupError
from nni_gconv.graph import CoupledSet, Coupling, Member, width_written_at
from nni_gconv.pruning.selection.allocation import removal_steps
from nni_gconv.pruning.selection.skipped import halves, loud, norms_of_others
from nni_gconv.speedup import MOST_WIDTHS, find_obstacle

#: Operators to be pinned, each with the reason -> the traced model.
CouplingOf = Callable[[Mapping[Node, str]], Coupling]


def judged(
    model: nn.Module,
    dummy_input: Any,
    coupling_of: CouplingOf,
    selected: Collection[str] | None = None,
    excluded: Collection[str] = (),
) -> Coupling:
    """Say of each coupled set why it cannot be pruned, if so, before anything is masked.

    Parameters
    ----------
    model : nn.Module
        The dense model; left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments of its forward.
    coupling_of : callable
        Traces the model.
    selected : collection of str, optional
        The layers that may be masked; None: all. A set keeps those of its members alone.
    excluded : collection of str
        Those that the config_list excludes by name.

    Returns
    -------
    Coupling
        ``reason`` of its sets is final: where it is None the channels are silent once masked, and
        the forward does without them.
    """
    pins: dict[Node, str] = {}
    for _ in range(MOST_WIDTHS):
        coupling = _silent(coupling_of(pins), selected, excluded)
        try:
            met = find_obstacle(model, dummy_input, coupling, some_of_each(coupling), pins)
        except SpeedupError as error:
            return _refused(coupling, str(error))
        if met is None:
            return coupling
        pins[met] = width_written_at(met)
    return _refused(coupling, "the forward holds too many literal widths")


def some_of_each(coupling: Coupling) -> np.ndarray:
    """Mark a few channels of each set that can be pruned, of neighbours a different number."""
    removed = coupling.empty()
    for number, coupled in enumerate(s for s in coupling.sets if s.reason is None):
        steps = removal_steps(np.zeros(coupled.size), blocks=coupled.parts)
        for step in steps[: 1 + number % max(1, len(steps) // 2)]:
            removed[coupled.classes[step]] = True
    return removed


def _refused(coupling: Coupling, reason: str) -> Coupling:
    sets = [s if s.reason is not None else replace(s, reason=reason) for s in coupling.sets]
    return replace(coupling, sets=tuple(sets))


def _silent(
    coupling: Coupling, selected: Collection[str] | None, excluded: Collection[str]
) -> Coupling:
    """Give a reason to sets that are not selected, and to those that masks cannot silence."""
    sets = [_own(coupled, selected, excluded) for coupled in coupling.sets]
    # What gates others may follow them without a mask of its own: zero times anything is zero.
    gates = [
        s.reason is None and len(s.members) < len(whole.members)
        for s, whole in zip(sets, coupling.sets, strict=True)
    ]
    others = {m.module for s in coupling.sets for m in s.members if not _is_in(m, selected)}
    if any(gates):
        going = _going(coupling, sets)
        beside = norms_of_others(coupling, halves(coupling, going)[0], others)
        heard = loud(coupling, going, others | beside)
        for index, whole in enumerate(coupling.sets):
            if gates[index] and any(c in heard for c in whole.classes.tolist()):
                sets[index] = replace(whole, reason=_beside(coupling, whole, selected))
    heard = loud(coupling, _going(coupling, sets), others)
    for index, coupled in enumerate(sets):
        reader = next((heard[c] for c in coupled.classes.tolist() if c in heard), None)
        if coupled.reason is None and reader is not None:
            text = f"what follows it turns a masked channel into a constant that {reader} reads"
            sets[index] = replace(coupled, reason=text)
    return replace(coupling, sets=tuple(sets))


def _own(
    coupled: CoupledSet, selected: Collection[str] | None, excluded: Collection[str]
) -> CoupledSet:
    """Leave a set its selected members; refuse one that has none, or an excluded one."""
    inside = tuple(m for m in coupled.members if _is_in(m, selected))
    outside = [m.module for m in coupled.members if m not in inside]
    refused = next((name for name in outside if name in excluded), None)
    if coupled.reason is not None or not outside:
        return coupled
    if not inside:
        return replace(coupled, reason="the config_list does not select it")
    if refused is not None:
        reason = f"its channels are coupled to {refused}, which the config_list excludes"
        return replace(coupled, reason=reason)
    return replace(coupled, members=inside)


def _is_in(member: Member, selected: Collection[str] | None) -> bool:
    return selected is None or member.module in selected


def _beside(coupling: Coupling, coupled: CoupledSet, selected: Collection[str] | None) -> str:
    outside = dict.fromkeys(m.module for m in coupled.members if not _is_in(m, selected))
    kinds = dict.fromkeys(type(coupling.graph.modules[name]).__name__ for name in outside)
    return (
        f"its channels are coupled to {next(iter(outside))}, which the config_list does not select"
        f" (add {', '.join(kinds)} to op_types, or couple: true)"
    )


def _going(coupling: Coupling, sets: Sequence[CoupledSet]) -> np.ndarray:
    going = coupling.empty()
    for coupled in sets:
        going[coupled.classes] = coupled.reason is None
    return going
