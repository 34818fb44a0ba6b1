"""A dry run: what can be pruned of a model, what cannot and why, and what a ratio would cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from nni_gconv.config_list import prunable_layers
from nni_gconv.display import Table
from nni_gconv.graph import CoupledSet, Coupling, trace
from nni_gconv.pruning import CostModel, Request, find_skipped, judged, removal_steps, take


@dataclass(frozen=True)
class SetDiagnosis:
    """One coupled set: its layers, its channels, why it stays, what `ratio` of it is worth."""

    layers: tuple[str, ...]
    channels: int
    reason: str | None
    macs_saved: float
    params_saved: float


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes
    ----------
    params, macs : int
        Of the dense model; MACs for one sample.
    ratio : float
        Share of every set's channels that was priced.
    params_ratio, macs_ratio : float
        Of the dense model, with that share of all sets gone.
    least_params_ratio, least_macs_ratio : float
        With all that can go gone: no budget below this can be reached.
    sets : tuple of SetDiagnosis
        Most MACs first, then those that stay.
    notes : tuple of str
        What was not seen of the model, one line each.
    seconds : float
        Time to trace and to follow the channels.
    """

    params: int
    macs: int
    ratio: float
    params_ratio: float
    macs_ratio: float
    least_params_ratio: float
    least_macs_ratio: float
    sets: tuple[SetDiagnosis, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return dataclasses.asdict(self)

    def table(self, title: str | None = None) -> Table:
        """Return the sets that can be pruned as a rich table."""
        table = Table(title=title)
        table.add_column("layers", overflow="fold")
        for head in ("channels", f"MACs saved at {self.ratio:g}", "params saved"):
            table.add_column(head, justify="right")
        for row in self.sets:
            if row.reason is None:
                saved = (f"{row.macs_saved:.1%}", f"{row.params_saved:.1%}")
                table.add_row(_names(row.layers), str(row.channels), *saved)
        return table

    def lines(self) -> list[str]:
        """Say in words what stays and why, and what the numbers come to."""
        stay: dict[str, list[SetDiagnosis]] = {}
        for row in self.sets:
            if row.reason is not None:
                stay.setdefault(row.reason, []).append(row)
        lines = []
        for reason, rows in stay.items():
            layers = tuple(dict.fromkeys(name for row in rows for name in row.layers))
            channels = sum(row.channels for row in rows)
            lines.append(f"stays: {_names(layers)} ({channels} channels): {reason}")
        return [
            *lines,
            *(f"note: {note}" for note in self.notes),
            f"traced in {self.seconds:.1f} s: {self.params:,} parameters, {self.macs:,} MACs",
            f"{self.ratio:g} of every set: {self.macs_ratio:.3f} of the MACs and "
            f"{self.params_ratio:.3f} of the parameters are left",
            f"no budget below {self.least_macs_ratio:.3f} of the MACs or "
            f"{self.least_params_ratio:.3f} of the parameters can be reached",
        ]


def _names(layers: Sequence[str]) -> str:
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more


def diagnose(model: nn.Module, dummy_input: Any, *, ratio: float = 0.5) -> Diagnosis:
    """Trace a model and price its coupled sets, without masks and without training.

    Parameters
    ----------
    model : nn.Module
        Left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments of the forward.
    ratio : float, default 0.5
        Share of the channels of a set that is priced.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TraceError
        The model cannot be traced; names the line of its forward.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    >>> found = diagnose(net, torch.zeros(1, 3, 8, 8))
    >>> [(s.layers, s.channels, s.reason) for s in found.sets]
    [(('0',), 8, None), (('1',), 4, 'an output of the model')]
    """
    begun = time.perf_counter()
    graph = trace(model, dummy_input)
    coupling = judged(
        model,
        dummy_input,
        lambda pins: Coupling.trace(model, dummy_input, graph=graph, pin=pins.items()),
    )
    seconds = time.perf_counter() - begun
    cost = CostModel(model, dummy_input, coupling)
    free = [s for s in coupling.sets if s.reason is None]
    rows = [_row(s, coupling, cost, ratio) for s in coupling.sets]
    rows += _unfollowed(model, coupling)
    shares = _ratios(cost, _gone(coupling, free, ratio))
    least = _ratios(cost, _gone(coupling, free, 1.0))
    return Diagnosis(
        params=cost.params,
        macs=cost.macs,
        ratio=ratio,
        params_ratio=shares["params"],
        macs_ratio=shares["macs"],
        least_params_ratio=least["params"],
        least_macs_ratio=least["macs"],
        sets=tuple(sorted(rows, key=lambda r: (r.reason is not None, -r.macs_saved))),
        notes=coupling.graph.notes,
        seconds=seconds,
    )


def _unfollowed(model: nn.Module, coupling: Coupling) -> list[SetDiagnosis]:
    """Layers that make no channels of any set: not used, or run with computed weights."""
    seen = {m.module for coupled in coupling.sets for m in coupled.members}
    _, skipped = find_skipped(coupling, prunable_layers(model))
    widths: dict[str, Any] = dict(model.named_modules())
    return [
        SetDiagnosis(
            layers=(name,),
            channels=getattr(
                widths[name], "out_channels", getattr(widths[name], "out_features", 0)
            ),
            reason=reason,
            macs_saved=0.0,
            params_saved=0.0,
        )
        for name, reason in skipped.items()
        if name not in seen
    ]


def _gone(coupling: Coupling, sets: list[CoupledSet], ratio: float) -> np.ndarray:
    """Mark a share of the channels of each set, as far as groups and one last channel allow."""
    removed = coupling.empty()
    scores = [np.zeros(coupled.size) for coupled in sets]
    requests = [
        Request(scores=own, steps=removal_steps(own, blocks=coupled.parts), ratio=ratio)
        for own, coupled in zip(scores, sets, strict=True)
    ]
    for coupled, request, number in zip(sets, requests, take(requests), strict=True):
        for step in request.steps[:number]:
            removed[coupled.classes[step]] = True
    return removed


def _ratios(cost: CostModel, removed: np.ndarray) -> dict[str, float]:
    return {m: cost(m, removed) / max(cost.dense(m), 1.0) for m in ("params", "macs")}


def _row(coupled: CoupledSet, coupling: Coupling, cost: CostModel, ratio: float) -> SetDiagnosis:
    left = {"params": 1.0, "macs": 1.0}
    if coupled.reason is None:
        left = _ratios(cost, _gone(coupling, [coupled], ratio))
    return SetDiagnosis(
        layers=tuple(dict.fromkeys(m.module for m in coupled.members)),
        channels=coupled.size,
        reason=coupled.reason,
        macs_saved=1 - left["macs"],
        params_saved=1 - left["params"],
    )
