"""Which forms make a network quick here: layers are timed one by one, whole networks judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from nni_gconv.groupconv import unwrapped
from nni_gconv.groupconv.forms import Form, FormTimer, TimedForm, Unit, find_units
from nni_gconv.inference.chain import cheapest_path
from nni_gconv.inference.judge import AS_IT_WAS, GIVEN, MEMORY, Judge
from nni_gconv.inference.norms import foldable_norms
from nni_gconv.inference.plan import FormPlan, LayerForm, ToMemoryFormat, apply_forms
from nni_gconv.inference.report import LayerChoice, OptimizeReport, TimedNetwork
from nni_gconv.profiling import (
    batch_of,
    clock_for,
    cpu_threads,
    device_of,
    in_turn,
    machine_of,
    milliseconds,
)

#: What the chain of layers must promise before a network of both memory formats is built.
_WORTH = 0.98


@dataclass(frozen=True)
class _Timed:
    """A layer and the times of its forms, the quickest first."""

    unit: Unit
    times: tuple[TimedForm, ...]

    def best(self, channels_last: bool) -> TimedForm:
        return next(row for row in self.times if row.channels_last == channels_last)

    def plain(self) -> TimedForm:
        form = Form("plain", self.groups)
        return next(r for r in self.times if r.form == form and not r.channels_last)

    def time_of(self, layer: LayerForm) -> float:
        wanted = (layer.form, layer.channels_last)
        return next(r.milliseconds for r in self.times if (r.form, r.channels_last) == wanted)

    @property
    def groups(self) -> int:
        layer: Any = unwrapped(self.unit.module)
        return layer.groups

    @property
    def is_grouped(self) -> bool:
        """Whether there is a dense layer in its place: for a depthwise one there is none."""
        layer: Any = unwrapped(self.unit.module)
        return layer.groups > 1 and layer.weight.shape[1] > 1


def find_forms(
    model: nn.Module,
    dummy_input: Any,
    *,
    threads: int = 1,
    max_seconds: float = 20.0,
    dense: nn.Module | None = None,
    channels_last: bool | None = None,
) -> tuple[FormPlan, OptimizeReport]:
    """Measure which forms of a network's layers are the quickest on this machine.

    Parameters
    ----------
    model, dummy_input, threads, max_seconds, dense
        As for :func:`nni_gconv.optimize`.
    channels_last : bool, optional
        Memory format of the dense network with its norms folded that forms have to beat; default:
        the quicker one.

    Returns
    -------
    (FormPlan, OptimizeReport)
        What to build with :func:`apply_forms`, and the figures.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> plan, report = find_forms(net, torch.zeros(1, 4, 9, 9), max_seconds=0.1)
    >>> [row.name for row in report.layers], report.networks[0].ratio
    (['0'], 1.0)
    """
    folded = foldable_norms(model, dummy_input)
    base = FormPlan(folded=folded)
    units = find_units(apply_forms(model, base), dummy_input)
    # Layers only propose: whole networks are timed next.
    timer = FormTimer(threads=threads, min_seconds=0.01, max_seconds=max_seconds / 10)
    timed = [_Timed(unit, timer.times(unit.module, unit.shape)) for unit in units]
    plans = {AS_IT_WAS: FormPlan(), **_candidates(base, timed, threads)}
    formats = MEMORY if channels_last is None else (channels_last,)
    dense_plans = [_plan(base, timed, _dense, last) for last in formats]
    plain = [name for name, plan in plans.items() if plan in dense_plans]
    measured = {**machine_of(device_of(model), threads=threads), "batch": batch_of(dummy_input)}
    judge = Judge(model, dummy_input, threads, max_seconds)
    networks, chosen = judge.choose(plans, plain, dense)
    plan = dataclasses.replace(plans[chosen], measured=measured)
    return plan, _report(plan, chosen, timed, networks, measured)


def _candidates(base: FormPlan, timed: Sequence[_Timed], threads: int) -> dict[str, FormPlan]:
    """Plans that may be quickest, by name."""
    plans: dict[str, FormPlan] = {}
    for last, memory in MEMORY.items():
        plans[f"norms folded, {memory}"] = _plan(base, timed, _kept, last)
        if any(t.is_grouped for t in timed):
            plans[f"dense, {memory}"] = _plan(base, timed, _dense, last)
        plans[f"quickest forms, {memory}"] = _plan(base, timed, _best, last)
    # Alone a layer finds its weights in the cache, in a network it does not.
    plans["packed weights, channels last"] = _plan(base, timed, _packed, True)
    mixed = _mixed(base, timed, threads)
    if mixed is not None:
        plans["quickest forms, both memory formats"] = mixed
    different: dict[str, FormPlan] = {}
    for name, plan in plans.items():
        if plan not in (FormPlan(), *different.values()):
            different[name] = plan
    return different


def _plan(
    base: FormPlan,
    timed: Sequence[_Timed],
    choose: Callable[[_Timed, bool], LayerForm],
    channels_last: bool,
) -> FormPlan:
    layers = {t.unit.name: choose(t, channels_last) for t in timed}
    return dataclasses.replace(base, layers=layers, channels_last=channels_last)


def _best(timed: _Timed, last: bool) -> LayerForm:
    return LayerForm(timed.best(last).form, last)


def _kept(timed: _Timed, last: bool) -> LayerForm:
    return LayerForm(Form("plain", timed.groups), last)


def _dense(timed: _Timed, last: bool) -> LayerForm:
    return LayerForm(Form("plain", 1 if timed.is_grouped else timed.groups), last)


def _packed(timed: _Timed, last: bool) -> LayerForm:
    """The quickest form with packed weights, if there are any."""
    found = [r for r in timed.times if r.form.kind == "packed" and r.channels_last == last]
    return LayerForm(found[0].form, last) if found else _best(timed, last)


def _mixed(base: FormPlan, timed: Sequence[_Timed], threads: int) -> FormPlan | None:
    """Choose memory formats layer by layer, as if the layers were a chain; None: one is enough."""
    costs = [[t.best(last).milliseconds * t.unit.calls for last in MEMORY] for t in timed]
    changes = _changes(timed, threads)
    path = cheapest_path(costs, changes)
    if len(set(path)) < 2:
        return None
    total = sum(cost[state] for cost, state in zip(costs, path, strict=True))
    before = [0, *path[:-1]]
    moved = [old != new for old, new in zip(before, path, strict=True)]
    total += sum(change for change, does in zip(changes, moved, strict=True) if does)
    if total > _WORTH * min(map(sum, zip(*costs, strict=True))):
        return None
    layers = {
        t.unit.name: LayerForm(t.best(bool(last)).form, bool(last), convert)
        for t, last, convert in zip(timed, path, moved, strict=True)
    }
    return dataclasses.replace(base, layers=layers)


def _changes(timed: Sequence[_Timed], threads: int) -> list[float]:
    """Milliseconds to bring each layer's input into the other memory format."""
    known: dict[tuple[int, ...], float] = {}
    for t in timed:
        weight: Any = unwrapped(t.unit.module).weight
        if t.unit.shape not in known:
            x = torch.zeros(t.unit.shape, device=weight.device, dtype=weight.dtype)
            call = partial(milliseconds, ToMemoryFormat(True), x, clock_for(threads))
            with cpu_threads(threads):
                found = in_turn({"change": call}, warmup=1, min_runs=3, min_seconds=0)
            known[t.unit.shape] = min(found["change"])
    return [known[t.unit.shape] * t.unit.calls for t in timed]


def _report(
    plan: FormPlan,
    chosen: str,
    timed: Sequence[_Timed],
    networks: tuple[TimedNetwork, ...],
    measured: dict[str, Any],
) -> OptimizeReport:
    layers = []
    for t in timed:
        layer = plan.layers.get(t.unit.name, _kept(t, False))
        times = (t.plain().milliseconds * t.unit.calls, t.time_of(layer) * t.unit.calls)
        layers.append(
            LayerChoice(t.unit.name, t.groups, str(layer.form), layer.channels_last, *times)
        )
    grouped = {t.unit.name for t in timed if t.is_grouped}
    paid: bool | None = None
    notes = []
    if grouped:
        kept = [n for n in grouped if _groups_left(plan, n)]
        paid = bool(kept) and not chosen.startswith("dense")
        if not paid:
            notes.append("groups do not pay here: their layers are computed as dense ones")
        elif len(kept) < len(grouped):
            notes.append(f"{len(grouped) - len(kept)} grouped layers are computed as dense ones")
    leader = min(networks, key=lambda n: n.ratio).name
    if leader != chosen and not leader.startswith(GIVEN):
        notes.append(f"{leader}: not surely quicker than {chosen}")
    if chosen == AS_IT_WAS:
        notes.append("nothing was quicker than the network as it was")
    return OptimizeReport(tuple(layers), networks, chosen, paid, measured, notes=tuple(notes))


def _groups_left(plan: FormPlan, name: str) -> bool:
    layer = plan.layers.get(name)
    return layer is None or layer.form is None or layer.form.groups > 1
