"""Milliseconds of single layers as group convolutions, on this machine.

A group convolution needs 1/G of the multiply-accumulates, and may take longer all the same: its
kernels are less tuned, and channels that have to be gathered in front of it or behind it are
memory traffic that the dense layer does not have. What holds for a layer is found by timing it, in
the quickest form that it has here (:mod:`nni_gconv.groupconv.forms`), as is the dense layer.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nni_gconv.display import Table
from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.choices import groups_of
from nni_gconv.groupconv.config import check_groups
from nni_gconv.groupconv.forms import FormTimer, TimedForm, input_shapes
from nni_gconv.groupconv.gather import wrap_gathers
from nni_gconv.groupconv.layers import CONVOLUTIONS, conv_like, replace_layers

#: Gathers of a layer: none, one in front, one in front and one behind.
_GATHERS = (0, 1, 2)


@dataclass(frozen=True)
class LayerLatency:
    """Time of one layer in one forward pass, as it is and grouped, run in turn.

    Attributes
    ----------
    name : str
        The layer.
    groups : int
        G.
    dense_ms, grouped_ms : float
        Of the layer as it is, dense or with the groups that it has, and of that with G.
        Fastest runs (others are longer for what else the machine does), each in its quickest form,
        summed over all its calls.
    form : str
        The quickest form of the grouped layer.
    had : int
        Groups of the layer as it is.
    """

    name: str
    groups: int
    dense_ms: float
    grouped_ms: float
    form: str = ""
    had: int = 1

    @property
    def ratio(self) -> float:
        """Grouped time over that of the layer as it is; above 1 is slower."""
        return self.grouped_ms / self.dense_ms if self.dense_ms else 1.0


@dataclass(frozen=True)
class LatencyGate:
    """What :func:`slower_than_dense` measured.

    Attributes
    ----------
    rows : tuple of LayerLatency
        Every layer that runs and gets more groups than it has.
    limit : float
        Largest ratio that passes.
    """

    rows: tuple[LayerLatency, ...]
    limit: float

    @property
    def slower(self) -> dict[str, LayerLatency]:
        """The layers to leave as they are: also those that would be computed as dense ones."""
        return {
            row.name: row
            for row in self.rows
            if row.ratio > self.limit or row.form.endswith(", dense")
        }

    def passed(self, groups: Mapping[str, int]) -> dict[str, int]:
        """Return group counts, for the layers that are slower grouped those that they have."""
        return {
            name: self.slower[name].had if name in self.slower else g for name, g in groups.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        rows = [{**dataclasses.asdict(row), "ratio": row.ratio} for row in self.rows]
        return {"rows": rows, "limit": self.limit, "slower": list(self.slower)}

    def table(self, title: str | None = None) -> Table:
        """Return a row for each layer, slower ones marked."""
        table = Table("layer", title=title)
        for heading in ("groups", "dense ms", "grouped ms", "grouped / dense"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for row in self.rows:
            times = (f"{row.dense_ms:.3f}", f"{row.grouped_ms:.3f}", f"{row.ratio:.3f}")
            left = "left dense" if row.had == 1 else f"left at {row.had} groups"
            left = left if row.name in self.slower else ""
            table.add_row(row.name, str(row.groups), *times, left)
        return table


def slower_than_dense(
    model: nn.Module,
    dummy_input: Any,
    groups: Mapping[str, int],
    *,
    gathers: int | Mapping[str, int] = 0,
    limit: float = 1.0,
    threads: int = 1,
    min_runs: int = 10,
    min_seconds: float = 0.1,
) -> LatencyGate:
    """Time each layer as it would be grouped against itself dense, on this machine.

    Equal layers on equal inputs are timed once. The times depend on the machine and on what else
    runs there, and so does what passes.

    Parameters
    ----------
    model : nn.Module
        The dense model, on the device it is to run on.
    dummy_input : Tensor, tuple or dict
        What the model is called on; its batch is the batch that is timed.
    groups : mapping of str to int
        Layer -> G; a layer that stays as it is is not timed.
    gathers : int or mapping of str to int, default 0
        Gathers that a grouped layer pays for: 0, 1 (input) or 2 (input and output); a mapping
        gives each layer its own (0 where it has none).
    limit : float, default 1.0
        Largest ratio of grouped to dense time that passes.
    threads : int, default 1
        CPU threads.
    min_runs, min_seconds
        As for :func:`nni_gconv.profiling.compare_latency`, for each kind of layer.

    Returns
    -------
    LatencyGate
        The figures, the layers to leave dense, and the group counts that pass.

    Raises
    ------
    ConfigError
        A layer is unknown or does not allow its G, or `gathers` is out of range.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    >>> found = slower_than_dense(net, torch.zeros(1, 8, 9, 9), {"0": 2, "1": 1}, min_seconds=0)
    >>> [(row.name, row.groups) for row in found.rows]
    [('0', 2)]
    """
    groups = check_groups(groups, model)
    timer = LayerTimer(
        model, dummy_input, threads=threads, min_runs=min_runs, min_seconds=min_seconds
    )
    rows = []
    for name, count in groups.items():
        if count <= timer.had(name) or not timer.calls(name):
            continue
        wanted = gathers.get(name, 0) if isinstance(gathers, Mapping) else gathers
        rows.append(timer.measure(name, (count,), gathers=wanted)[0])
    return LatencyGate(tuple(rows), limit)


class LayerTimer:
    """Times single layers of a model on the inputs they have in it; each kind once.

    Parameters
    ----------
    model, dummy_input, threads, min_runs, min_seconds
        As for :func:`slower_than_dense`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    >>> timer = LayerTimer(net, torch.zeros(1, 8, 9, 9), min_seconds=0)
    >>> [(row.groups, row.ratio > 0) for row in timer.measure("0", (2, 4))]
    [(2, True), (4, True)]
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        *,
        threads: int = 1,
        min_runs: int = 10,
        min_seconds: float = 0.1,
    ) -> None:
        self._timer = FormTimer(threads=threads, min_runs=min_runs, min_seconds=min_seconds)
        self._layers: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        convolutions = [m for m in model.modules() if isinstance(m, CONVOLUTIONS)]
        self._shapes = input_shapes(model, convolutions, dummy_input)
        self._known: dict[tuple[Any, ...], tuple[TimedForm, TimedForm]] = {}

    def calls(self, name: str) -> int:
        """How often the layer runs in one forward pass."""
        return len(self._shapes.get(self._layers[name], ()))

    def had(self, name: str) -> int:
        """Groups of the layer as it is."""
        return groups_of(self._layers[name])

    def measure(
        self, name: str, counts: tuple[int, ...], *, gathers: int = 0
    ) -> list[LayerLatency]:
        """Time a layer as it is and with each group count, all in turn.

        Raises
        ------
        ConfigError
            `gathers` is not 0, 1 or 2.
        """
        if gathers not in _GATHERS:
            raise ConfigError(f"gathers: {gathers!r} is not allowed (allowed: 0, 1, 2)")
        layer = self._layers[name]
        calls = [
            self._times(layer, shape, counts, gathers) for shape in self._shapes.get(layer, ())
        ]
        return [
            LayerLatency(
                name,
                count,
                sum(dense.milliseconds for dense, _ in by_call),
                sum(grouped.milliseconds for _, grouped in by_call),
                str(by_call[0][1].form) if by_call else "",
                groups_of(layer),
            )
            for count, by_call in ((count, [call[count] for call in calls]) for count in counts)
        ]

    def _times(
        self, layer: Any, shape: tuple[int, ...], counts: tuple[int, ...], gathers: int
    ) -> dict[int, tuple[TimedForm, TimedForm]]:
        """The layer as it is and grouped, in their quickest forms on one input, for each count."""
        had = groups_of(layer)
        kind = (type(layer), layer.extra_repr(), shape, gathers)
        keys = {count: (*kind, count) for count in counts}
        new = [count for count in counts if keys[count] not in self._known]
        if new:
            several = [count for count in new if count > had]
            units = [_alone(layer, had, 0)[0], *(_alone(layer, g, gathers)[0] for g in several)]
            found = [rows[0] for rows in self._timer.race(units, shape)]
            best = dict(zip([had, *several], found, strict=True))
            self._known.update({keys[count]: (best[had], best[count]) for count in new})
        return {count: self._known[key] for count, key in keys.items()}


def grouped_copy(model: nn.Module, groups: Mapping[str, int], *, gathers: int = 0) -> nn.Module:
    """Return a copy of a model with group convolutions of fresh weights, to be timed or counted.

    Parameters
    ----------
    model : nn.Module
        The dense model; not changed.
    groups : mapping of str to int
        Layer -> G.
    gathers : int, default 0
        Gathers at each grouped layer: 0, 1 (input) or 2 (input and output).

    Returns
    -------
    nn.Module
        On the same device.

    Examples
    --------
    >>> grouped_copy(nn.Sequential(nn.Conv2d(8, 8, 3)), {"0": 4})[0].weight.shape
    torch.Size([8, 2, 3, 3])
    """
    groups = check_groups(groups, model)
    copied = copy.deepcopy(model)
    split = {n: g for n, g in groups.items() if g > groups_of(copied.get_submodule(n))}
    layers = {copied.get_submodule(name): count for name, count in split.items()}
    replace_layers(copied, {layer: conv_like(layer, count) for layer, count in layers.items()})
    for name in split:
        _add_gathers(copied, name, gathers)
    return copied


def _add_gathers(model: nn.Module, name: str, gathers: int) -> None:
    """Put gathers in orders as scattered as any before and behind a layer."""
    conv: Any = model.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    orders = [
        torch.randperm(size, generator=generator).tolist() if number < gathers else None
        for number, size in enumerate((conv.in_channels, conv.out_channels))
    ]
    if gathers:
        wrap_gathers(model, name, *orders)


def _alone(layer: Any, count: int, gathers: int) -> nn.Sequential:
    """A layer of its kind with so many groups, and its gathers."""
    model = nn.Sequential(conv_like(layer, count))
    _add_gathers(model, "0", gathers)
    return model
