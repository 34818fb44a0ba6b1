"""``nni_gconv.optimize``: the quickest equal form of a network on this machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nni_gconv.errors import CheckpointError, ConfigError, check_model, unknown_name
from nni_gconv.inference.check import check_equal
from nni_gconv.inference.plan import FormPlan, apply_forms
from nni_gconv.inference.report import OptimizeReport
from nni_gconv.inference.search import find_forms

_MARK = "optimized_from"


@dataclass(frozen=True)
class Optimized:
    """What a network for inference was made of.

    Attributes
    ----------
    model : nn.Module
        The network as it was, which files hold.
    plan : FormPlan
        Its forms.
    report : OptimizeReport or None
        What was measured; None after loading.
    """

    model: nn.Module
    plan: FormPlan
    report: OptimizeReport | None = None


def optimize(
    model: nn.Module,
    dummy_input: Any,
    target: str = "latency",
    *,
    threads: int = 1,
    max_seconds: float = 20.0,
    dense: nn.Module | None = None,
) -> nn.Module:
    """Return a copy for inference in which every layer has its quickest equal form here.

    Batch norms are folded; a convolution may run with its groups merged, down to a dense one with
    blocks on its diagonal, with packed weights, group by group, or as matrix products, and each in
    either memory format. Forms are timed layer by layer on the layers' own inputs, memory formats
    of neighbours are chosen together, and whole networks timed in turn decide: what comes back is
    no slower than `model`, nor than `model` with dense layers and folded norms.

    Parameters
    ----------
    model : nn.Module
        A small network, usually of :class:`nni_gconv.ModelSpeedup`; stays as it is.
    dummy_input : Tensor, tuple or dict
        What it is called on; its batch is the batch that is timed.
    target : {"latency"}
        What becomes smaller.
    threads : int, default 1
        CPU threads that it is to run with.
    max_seconds : float, default 20
        For timing whole networks; layers take about as long.
    dense : nn.Module, optional
        The network before pruning: timed beside, with norms folded, for the report.

    Returns
    -------
    nn.Module
        In eval mode, for inference only; :func:`report_of` tells what was measured, and
        :func:`nni_gconv.save_compact` writes `model` and a plan of forms.

    Raises
    ------
    ConfigError
        An unknown target, or `dummy_input` holds no tensor.
    TraceError
        The model cannot be traced.
    SpeedupError
        The copy gives other numbers: by more than 1e-9 in float64.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)).eval()
    >>> fast = optimize(net, torch.zeros(1, 4, 9, 9), max_seconds=0.1)
    >>> report_of(fast).taken.ratio <= 1
    True
    """
    check_model(model)
    if target != "latency":
        raise ConfigError(unknown_name("target", target, ("latency",), "optimize"))
    plan, report = find_forms(
        model, dummy_input, threads=threads, max_seconds=max_seconds, dense=dense
    )
    fast, difference = built_by(model, plan, dummy_input)
    report = dataclasses.replace(report, difference=difference)
    return mark_optimized(fast, Optimized(model, plan, report))


def built_by(model: nn.Module, plan: FormPlan, dummy_input: Any) -> tuple[nn.Module, float]:
    """Build a network's forms by a plan that was measured before, and compare the numbers.

    Returns
    -------
    (nn.Module, float)
        The network, and the largest difference in float64 relative to the largest output.

    Raises
    ------
    SpeedupError
        See :func:`optimize`.
    """
    fast = apply_forms(model, plan)
    difference = check_equal(model, fast, lambda m: apply_forms(m, plan), dummy_input)
    return mark_optimized(fast, Optimized(model, plan)), difference


def mark_optimized(fast: nn.Module, origin: Optimized) -> nn.Module:
    """Remember what a network was made of, outside of its state."""
    setattr(fast, _MARK, origin)
    return fast


def origin_of(model: nn.Module) -> Optimized | None:
    """Return what :func:`optimize` made a network of; None: it did not.

    Raises
    ------
    CheckpointError
        One of the two was changed since, so that they are no longer the same network.
    """
    origin = getattr(model, _MARK, None)
    if not isinstance(origin, Optimized):
        return None
    now, then = model.state_dict(), apply_forms(origin.model, origin.plan).state_dict()
    same = now.keys() == then.keys() and all(
        a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
        for a, b in zip(now.values(), then.values(), strict=True)
    )
    if not same:
        raise CheckpointError(
            "the optimized network or the one it was made of was changed since optimize(): "
            "change the small network and optimize it again"
        )
    return origin


def report_of(model: nn.Module) -> OptimizeReport:
    """Return what :func:`optimize` measured.

    Raises
    ------
    ConfigError
        The network does not come from it, or from a file.
    """
    origin = getattr(model, _MARK, None)
    if not isinstance(origin, Optimized) or origin.report is None:
        raise ConfigError(f"report_of: this {type(model).__name__} does not come from optimize()")
    return origin.report
