"""What :func:`nni_gconv.optimize` measured and chose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class LayerChoice:
    """The form of one layer.

    Attributes
    ----------
    name : str
        Dotted name.
    groups : int
        G of the layer.
    form : str
        What it is computed as.
    channels_last : bool
        Memory format of its output.
    was_ms, now_ms : float
        Fastest runs of the layer alone as torch's own contiguous layer, and in this form, summed
        over its calls.
    """

    name: str
    groups: int
    form: str
    channels_last: bool
    was_ms: float
    now_ms: float


@dataclass(frozen=True)
class TimedNetwork:
    """A whole network that was timed in turn with the network as it was.

    Attributes
    ----------
    name : str
        What it is.
    milliseconds : float
        Of the network as it was, times `ratio`.
    ratio, low, high : float
        Time over that of the network as it was in the same round, and its 95 % interval.
    """

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class OptimizeReport:
    """What was measured and chosen.

    Attributes
    ----------
    layers : tuple of LayerChoice
        In the order they run.
    networks : tuple of TimedNetwork
        Timed in turn; the first is the network as it was.
    chosen : str
        Name of that in `networks` which was taken.
    groups_paid : bool or None
        Whether group convolutions are left in a network that is quicker than with dense ones in
        their place; None: it had none.
    measured : dict
        Machine, torch, threads and batch.
    difference : float
        Largest difference to the network as it was in float64, relative to its largest output.
    notes : tuple of str
        One line each.
    """

    layers: tuple[LayerChoice, ...]
    networks: tuple[TimedNetwork, ...]
    chosen: str
    groups_paid: bool | None
    measured: dict[str, Any]
    difference: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> TimedNetwork:
        """The network that was taken."""
        return next(network for network in self.networks if network.name == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        made = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in made.items()}

    def table(self, title: str | None = None) -> Table:
        """Return a row for each layer, times in a caption below."""
        table = Table("layer", title=title, caption="\n".join(self.lines()))
        table.caption_justify = "left"
        table.add_column("groups", justify="right")
        table.add_column("form")
        table.add_column("memory")
        for heading in ("ms before", "ms"):
            table.add_column(heading, justify="right")
        for row in self.layers:
            memory = "channels last" if row.channels_last else "contiguous"
            times = (f"{row.was_ms:.3f}", f"{row.now_ms:.3f}")
            table.add_row(row.name, str(row.groups), row.form, memory, *times)
        return table

    def lines(self) -> list[str]:
        """Say what whole networks took, which was taken, and what is to be known of it."""
        measured = self.measured
        first = (
            f"{measured['device']}, {measured['threads']} threads, batch {measured['batch']}, "
            f"torch {measured['torch']}"
        )
        rows = [
            f"{'* ' if n.name == self.chosen else '  '}{n.name}: {n.milliseconds:.3f} ms, "
            f"{n.ratio:.3f} ({n.low:.3f} to {n.high:.3f}) of what it was"
            for n in self.networks
        ]
        return [first, *rows, *self.notes]
