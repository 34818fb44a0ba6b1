"""What a model costs: parameters, multiply-accumulates, memory and measured time.

>>> import torch
>>> from torch import nn
>>> from nni_gconv.profiling.costs import count
>>> count(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 4, 4))
Counts(params=216, macs=3456)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.filesize import decimal
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nni_gconv.compat import flop_formulas, plain_attention
from nni_gconv.display import Table, as_html
from nni_gconv.profiling.forward import DummyInput, batch_of, device_of, measuring, run, to_device
from nni_gconv.profiling.latency import (
    Latency,
    measure_latency,
)
from nni_gconv.profiling.observe import ModuleRecord, OperatorObserver, recording


class Counts(NamedTuple):
    """Parameters of a model, and its multiply-accumulates for one sample."""

    params: int
    macs: int


@dataclass(frozen=True)
class LayerProfile:
    """One module's own share, without its children.

    Attributes
    ----------
    name : str
        Path of the module; empty for the model itself.
    type : str
        Its class.
    params : int
        Parameters that it owns; one that several modules share counts for the first of them.
    macs : int
        Multiply-accumulates of its own operators for one sample, over all its calls.
    output_shape : tuple of int or None
        Shape of the (first tensor of the) last output, batch included; None if it never ran.
    calls : int
        How often it ran.
    """

    name: str
    type: str
    params: int
    macs: int
    output_shape: tuple[int, ...] | None
    calls: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a forward pass of the whole `dummy_input` holds, in eval mode.

    Attributes
    ----------
    parameter_bytes, buffer_bytes : int
        Of the tensors as they are stored.
    peak_activation_bytes : int
        Most bytes beyond parameters, buffers and inputs that were in use at once.
    method : str
        ``"cuda allocator"``: measured by torch's allocator, kernels' workspaces and the rounding
        of blocks included. ``"live tensors"`` (CPU): the greatest sum of the sizes of all tensors
        that operators had returned and that were still referenced; scratch memory inside a kernel
        is not seen, so that the process may take more.
    """

    parameter_bytes: int
    buffer_bytes: int
    peak_activation_bytes: int
    method: str


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` found.

    Attributes
    ----------
    params : int
        Parameters; a shared one counts once.
    macs : int
        Multiply-accumulates for one sample. Matrix products, convolutions and attention count;
        biases, norms, activations, poolings and sums do not, as in most papers' tables.
    batch_size : int
        Samples in `dummy_input`.
    layers : tuple of LayerProfile
        Modules without children, and others that own parameters or compute something themselves,
        in the model's order. Their parameters and MACs add up to the totals.
    uncounted : dict of str to int
        Calls of operators that do arithmetic and add nothing to `macs`.
    costly_uncounted : dict of str to int
        Those of them that are more than a few operations per number they read (a Fourier
        transform, an LSTM in one kernel): if there are any, `macs` is too low.
    memory : Memory
        Bytes of the forward pass.
    latency : tuple of Latency
        One entry for each batch size that was asked for.
    """

    params: int
    macs: int
    batch_size: int
    layers: tuple[LayerProfile, ...]
    uncounted: dict[str, int]
    costly_uncounted: dict[str, int]
    memory: Memory
    latency: tuple[Latency, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return as_html(self.table())

    def table(self, title: str | None = None) -> Table:
        """Return a row for each layer that costs something; totals below, the rest as caption.

        Parameters
        ----------
        title : str, optional
            Heading of the table.

        Examples
        --------
        >>> found = profile(nn.Linear(4, 2), torch.zeros(1, 4))
        >>> print(found.table("Linear"))  # doctest: +SKIP
        """
        table = Table(title=title, caption="\n".join(self._notes()), show_footer=True)
        table.add_column("layer", footer="total", no_wrap=True)
        table.add_column("type")
        table.add_column("output", justify="right")
        table.add_column("params", footer=f"{self.params:,}", justify="right")
        table.add_column("MACs", footer=f"{self.macs:,}", justify="right")
        table.add_column("% of MACs", justify="right")
        for layer in self.layers:
            if not (layer.params or layer.macs):
                continue
            shape = layer.output_shape
            share = f"{100 * layer.macs / self.macs:.1f}" if layer.macs else ""
            table.add_row(
                layer.name or "(model)",
                layer.type,
                "never ran" if shape is None else "x".join(map(str, shape)),
                f"{layer.params:,}" if layer.params else "",
                f"{layer.macs:,}" if layer.macs else "",
                share,
            )
        return table

    def _notes(self) -> list[str]:
        memory = self.memory
        notes = [
            f"memory at batch {self.batch_size}: parameters {decimal(memory.parameter_bytes)}, "
            f"activations up to {decimal(memory.peak_activation_bytes)} ({memory.method})"
        ]
        notes += [
            f"batch {row.batch_size}: {row.median_ms:.3f} ms "
            f"({row.p25_ms:.3f} to {row.p75_ms:.3f}, {row.device}, {row.threads} threads"
            f"{'' if row.backend == 'eager' else f', {row.backend}'})"
            for row in self.latency
        ]
        if self.costly_uncounted:
            calls = ", ".join(f"{name} x{n}" for name, n in self.costly_uncounted.items())
            notes.append(f"MACs are too low, no formula for: {calls}")
        return notes


def count(model: nn.Module, dummy_input: DummyInput) -> Counts:
    """Count parameters and multiply-accumulates; one forward pass and no more.

    Parameters
    ----------
    model : torch.nn.Module
        Runs in eval mode without gradients, on its own device, and is left as found: training
        flags, hooks, random state.
    dummy_input : Tensor, tuple or dict
        What it is called on: a tensor, positional or keyword arguments. The first dimension of
        the first tensor is the batch.

    Returns
    -------
    Counts
        ``params`` (a shared one counts once) and ``macs`` for one sample.

    Raises
    ------
    ConfigError
        `dummy_input` holds no tensor.

    Examples
    --------
    >>> count(nn.Linear(4, 2), torch.zeros(5, 4))
    Counts(params=10, macs=8)
    """
    inputs = to_device(dummy_input, device_of(model))
    batch = batch_of(inputs)
    counter = _flop_counter()
    with measuring(model), plain_attention(), counter:
        run(model, inputs)
    return Counts(_params(model), _macs(counter.get_total_flops(), batch))


def profile(
    model: nn.Module,
    dummy_input: DummyInput,
    *,
    batch_sizes: Sequence[int] = (),
    threads: int = 1,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 0.5,
    channels_last: bool = False,
    backends: Sequence[str] = ("eager",),
) -> Profile:
    """Measure what a model costs, layer by layer.

    Parameters
    ----------
    model : torch.nn.Module
        Runs in eval mode without gradients, on its own device, and is left as found.
    dummy_input : Tensor, tuple or dict
        What it is called on: a tensor, positional or keyword arguments. Parameters and MACs do
        not depend on its batch; memory is that of the whole batch.
    batch_sizes : sequence of int, default ()
        Batch sizes to time; none by default, since timing takes seconds.
    threads, warmup, min_runs, min_seconds, channels_last
        As for :func:`measure_latency`.
    backends : sequence of str, default ("eager",)
        What runs the model when it is timed; each in turn, see :func:`measure_latency`.

    Returns
    -------
    Profile
        Totals, one row a layer, operators without a formula, memory and times.

    Raises
    ------
    ConfigError
        `dummy_input` holds no tensor, or a count is out of range.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    >>> found = profile(net, torch.zeros(1, 3, 4, 4))
    >>> found.params, found.macs
    (554, 1184)
    >>> [(row.name, row.macs) for row in found.layers]
    [('0', 864), ('1', 0), ('2', 0), ('3', 320)]
    """
    inputs = to_device(dummy_input, device_of(model))
    batch = batch_of(inputs)
    counter = _flop_counter()
    existing = [*model.parameters(), *model.buffers()]
    existing += [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    # The observer stands below the counter, so that it sees operators as they are executed.
    observer = OperatorObserver(counter.flop_registry, existing)
    with (
        measuring(model),
        plain_attention(),
        recording(model, counter) as records,
        observer,
        counter,
    ):
        run(model, inputs)
    uncounted = dict(sorted(observer.calls.items()))
    rows = [
        measure_latency(
            model,
            inputs,
            batch_size=size,
            threads=threads,
            warmup=warmup,
            min_runs=min_runs,
            min_seconds=min_seconds,
            channels_last=channels_last,
            backend=backend,
        )
        for backend in backends
        for size in batch_sizes
    ]
    return Profile(
        params=_params(model),
        macs=_macs(counter.get_total_flops(), batch),
        batch_size=batch,
        layers=tuple(_layers(model, records, batch)),
        uncounted=uncounted,
        costly_uncounted={k: n for k, n in uncounted.items() if k in observer.costly},
        memory=_memory(model, inputs, observer.peak),
        latency=tuple(rows),
    )


def _flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=flop_formulas())


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _macs(flops: int, batch: int) -> int:
    # Work that does not depend on the batch (on the weights alone) need not divide by it.
    return round(flops / (2 * batch))


def _layers(
    model: nn.Module, records: dict[nn.Module, ModuleRecord], batch: int
) -> list[LayerProfile]:
    seen: set[nn.Parameter] = set()
    rows = []
    for name, module in model.named_modules():
        own = set(module.parameters(recurse=False)) - seen
        seen |= own
        record = records[module]
        leaf = next(module.children(), None) is None
        if not (leaf or own or record.flops):
            continue
        rows.append(
            LayerProfile(
                name=name,
                type=type(module).__name__,
                params=sum(p.numel() for p in own),
                macs=_macs(record.flops, batch),
                output_shape=record.output_shape,
                calls=record.calls,
            )
        )
    return rows


def _memory(model: nn.Module, inputs: Any, live_peak: int) -> Memory:
    device = device_of(model)
    peak, method = live_peak, "live tensors"
    if device.type == "cuda":
        peak, method = _cuda_peak(model, inputs, device), "cuda allocator"
    return Memory(
        parameter_bytes=_stored_bytes(model.parameters()),
        buffer_bytes=_stored_bytes(model.buffers()),
        peak_activation_bytes=peak,
        method=method,
    )


def _stored_bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _cuda_peak(model: nn.Module, inputs: Any, device: torch.device) -> int:
    # Torch's highest mark so far is lost: it can be reset but not set.
    with measuring(model):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = run(model, inputs)
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del out
    return peak
