"""What a shrinking came to: numbers, notes and layers, readable by ``print`` and in notebooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group

from nni_gconv.display import Table, as_html, as_text
from nni_gconv.profiling import Counts
from nni_gconv.pruning import Reconstruction
from nni_gconv.speedup import SpeedupReport


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`nni_gconv.shrink` did; ``print(report)`` shows it.

    Attributes
    ----------
    method : str
        How channels were chosen.
    budget : dict of str to float
        What was asked: fractions of dense up to 1, or counts.
    dense, small : Counts
        Parameters, and MACs for one sample.
    least : dict of str to float
        The fraction of each measure that would be left with all that may go gone.
    latency_ratio : float or None
        Small over dense, measured in turn; None where no latency was asked.
    difference : float or None
        Largest relative difference between masked and small network in float64, before any
        training of the small one.
    images : int
        Calibration images looked at.
    reconstruction : Reconstruction or None
        What fitting the weights that are left came to.
    kept : dict of str to str
        Layers that were not pruned, each with the reason.
    tuned : bool
        Whether the small network was trained by ``trainer`` afterwards.
    speedup : SpeedupReport
        Every layer before and after.
    seconds : dict of str to float
        How long each stage took.
    """

    method: str
    budget: dict[str, float]
    dense: Counts
    small: Counts
    least: dict[str, float]
    latency_ratio: float | None
    difference: float | None
    images: int
    reconstruction: Reconstruction | None
    kept: dict[str, str]
    tuned: bool
    speedup: SpeedupReport
    seconds: dict[str, float]

    @property
    def macs_ratio(self) -> float:
        """MACs, small over dense."""
        return self.small.macs / max(self.dense.macs, 1)

    @property
    def params_ratio(self) -> float:
        """Parameters, small over dense."""
        return self.small.params / max(self.dense.params, 1)

    def __str__(self) -> str:
        """The costs, what was done and every layer whose channels changed."""
        return as_text(*self._parts())

    def __rich__(self) -> Group:
        """The same, for rich."""
        return Group(*self._parts())

    def _repr_html_(self) -> str:
        return as_html(*self._parts())

    def table(self) -> Table:
        """Return convolutions and linear layers before and after."""
        table = Table(
            "layer", "type", "before", "after", "groups", title="layers (outputs × inputs)"
        )
        for row in self.speedup.layers:
            if len(row.before) < 2:  # norms follow the layers in front of them
                continue
            shapes = [" × ".join(map(str, shape)) for shape in (row.before, row.after)]
            after = shapes[1] if shapes[0] != shapes[1] else "as it was"
            table.add_row(row.name, row.type, shapes[0], after, str(row.groups))
        return table

    def costs(self) -> Table:
        """Return what the dense and the small network cost."""
        table = Table(title=f"shrunk by {self.method} in {sum(self.seconds.values()):.1f} s")
        table.add_column("", no_wrap=True)
        for head in ("dense", "small", "left", "asked"):
            table.add_column(head, justify="right")
        rows = (("macs", "MACs"), ("params", "parameters"))
        for measure, name in rows:
            dense, small = getattr(self.dense, measure), getattr(self.small, measure)
            table.add_row(
                name,
                f"{dense:,}",
                f"{small:,}",
                f"{small / max(dense, 1):.3f}",
                self._asked(measure),
            )
        if self.latency_ratio is not None:
            asked = self._asked("latency")
            table.add_row("latency", "", "", f"{self.latency_ratio:.3f}", asked)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the layers as plain values for JSON."""
        found = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "speedup"
        }
        found["dense"], found["small"] = self.dense._asdict(), self.small._asdict()
        made = self.reconstruction
        found["reconstruction"] = None if made is None else dataclasses.asdict(made)
        ratios = {"macs_ratio": self.macs_ratio, "params_ratio": self.params_ratio}
        return {**found, **ratios, "notes": list(self.speedup.notes)}

    def _asked(self, measure: str) -> str:
        value = self.budget.get(measure)
        if value is None:
            return ""
        return f"{value:.3f}" if value <= 1 else f"{value:,.0f}"

    def _parts(self) -> list[Table | str]:
        lines = []
        if self.difference is not None:
            lines.append(
                "the small network equals the masked one: outputs differ by "
                f"{self.difference:.1e} in float64"
            )
        if self.reconstruction is not None:
            lines.append(str(self.reconstruction))
        if self.tuned:
            lines.append("then the small network was trained by trainer")
        lines += kept_lines(self.kept)
        lines += [f"note: {note}" for note in self.speedup.notes]
        return [self.costs(), *lines, self.table()]


def kept_lines(kept: dict[str, str], shown: int = 3) -> list[str]:
    """One line for each reason why layers keep their channels.

    Examples
    --------
    >>> kept_lines({"fc": "an output of the model"})
    ['kept: fc: an output of the model']
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in kept.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"kept: {_some(names, shown)}: {reason}" for reason, names in by_reason.items()]


def _some(names: Sequence[str], shown: int) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
