"""Seconds on this machine: of one model, and of several in turn so that their ratio is right.

Times of the same model differ from minute to minute on a machine that does other things too. To
compare models, use :func:`compare_latency`, which runs them in turn and compares neighbours.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nni_gconv.errors import ConfigError
from nni_gconv.profiling.backends import on_backend
from nni_gconv.profiling.forward import (
    DummyInput,
    device_of,
    measuring,
    run,
    to_device,
    with_batch,
)
from nni_gconv.profiling.rounds import (
    Clock,
    clock_for,
    cpu_threads,
    in_turn,
    paired_ratio,
    quartiles,
)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass of a whole batch.

    On one CPU thread they are of the process's CPU time, which does not count what a busy machine
    gives to other processes meanwhile; on several threads they are of the wall clock, on a GPU of
    its own.

    Attributes
    ----------
    median_ms, p25_ms, p75_ms : float
        Median and quartiles over `runs` runs.
    best_ms : float
        Fastest run: nearest to what the model takes where nothing else runs.
    runs : int
        Timed runs.
    batch_size, threads : int
        Samples of a run, and CPU threads.
    device : str
        ``"cpu"`` or the name of the GPU.
    channels_last : bool
        Memory layout of the weights and inputs.
    backend : str
        What ran the model, one of :data:`BACKENDS`.
    """

    median_ms: float
    p25_ms: float
    p75_ms: float
    best_ms: float
    runs: int
    batch_size: int
    threads: int
    device: str
    channels_last: bool
    backend: str = "eager"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LatencyComparison:
    """What :func:`compare_latency` found.

    Attributes
    ----------
    reference : str
        Name of the first model, by whose time the others are divided.
    latencies : dict of str to Latency
        Each model's own times.
    ratios : dict of str to float
        Median over the rounds of (time of the model) / (time of the reference in the same round);
        below 1 is faster. The reference itself has 1.0.
    ratio_quartiles : dict of str to (float, float)
        Quartiles of the same.
    ratio_intervals : dict of str to (float, float)
        95 % interval of each ratio, of a bootstrap over the rounds.
    times : dict of str to list of float
        Milliseconds of every run; entry k of each list is of the same round.
    """

    reference: str
    latencies: dict[str, Latency]
    ratios: dict[str, float]
    ratio_quartiles: dict[str, tuple[float, float]]
    ratio_intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    times: dict[str, list[float]] = dataclasses.field(default_factory=dict, repr=False)

    def ratio_to(self, name: str, reference: str) -> tuple[float, float, float]:
        """Return the ratio of two of the models, and the ends of its interval."""
        return paired_ratio(self.times[name], self.times[reference])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return dataclasses.asdict(self)


def measure_latency(
    model: nn.Module,
    dummy_input: DummyInput,
    *,
    batch_size: int,
    threads: int = 1,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 0.5,
    max_seconds: float | None = None,
    channels_last: bool = False,
    backend: str = "eager",
) -> Latency:
    """Time a model's forward pass in eval mode without gradients, on the device it is on.

    Parameters
    ----------
    model : torch.nn.Module
        Left as found.
    dummy_input : Tensor, tuple or dict
        What the model is called on: a tensor, positional or keyword arguments. Tensors with the
        batch as first dimension are repeated or cut to `batch_size`.
    batch_size : int
        Samples in a run.
    threads : int, default 1
        CPU threads of one operator; torch's setting is put back afterwards.
    warmup : int, default 3
        Runs that are not timed.
    min_runs : int, default 10
        At least so many timed runs ...
    min_seconds : float, default 0.5
        ... and at least so many seconds of them.
    max_seconds : float, optional
        No more than so many seconds, but three runs.
    channels_last : bool, default False
        Time a copy of the model in the channels-last memory layout.
    backend : {"eager", "compile", "onnxruntime", "openvino"}, default "eager"
        What runs the model, see :func:`on_backend`; compiling takes up to minutes.

    Returns
    -------
    Latency
        Milliseconds for the whole batch.

    Raises
    ------
    ConfigError
        A count is out of range, or `dummy_input` holds no tensor.

    Examples
    --------
    >>> layer = nn.Linear(8, 8)
    >>> found = measure_latency(layer, torch.zeros(1, 8), batch_size=4, min_runs=5, min_seconds=0)
    >>> found.runs, found.batch_size, found.device
    (5, 4, 'cpu')
    """
    comparison = compare_latency(
        {"model": model},
        dummy_input,
        batch_size=batch_size,
        threads=threads,
        warmup=warmup,
        min_runs=min_runs,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        channels_last=channels_last,
        backend=backend,
    )
    return comparison.latencies["model"]


def compare_latency(
    models: Mapping[str, nn.Module],
    dummy_input: DummyInput,
    *,
    batch_size: int,
    threads: int = 1,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 0.5,
    max_seconds: float | None = None,
    channels_last: bool = False,
    backend: str = "eager",
) -> LatencyComparison:
    """Time models in turn, A B A B, and compare each with the first in the same round.

    Whatever slows the machine for a while slows neighbouring runs alike, so the median of their
    ratios stands where the ratio of two medians taken one after the other would wander.

    Parameters
    ----------
    models : mapping of str to torch.nn.Module
        The first is the reference. Left as found.
    dummy_input : Tensor, tuple or dict
        What each model is called on.
    batch_size, threads, warmup, channels_last, backend
        As for :func:`measure_latency`.
    min_runs : int, default 10
        At least so many rounds ...
    min_seconds : float, default 0.5
        ... and at least so many seconds for each model.
    max_seconds : float, optional
        No more than so many for all together, but three rounds.

    Returns
    -------
    LatencyComparison
        Times and ratios by name.

    Raises
    ------
    ConfigError
        No model, a count out of range, or `dummy_input` holds no tensor.

    Examples
    --------
    >>> pair = {"dense": nn.Linear(256, 256), "small": nn.Linear(256, 16)}
    >>> found = compare_latency(pair, torch.zeros(1, 256), batch_size=2, min_seconds=0.0)
    >>> found.reference, found.ratios["dense"], sorted(found.latencies)
    ('dense', 1.0, ['dense', 'small'])
    """
    if not models:
        raise ConfigError("compare_latency: models is empty; give {'name': model, ...}")
    counts = {"batch_size": batch_size, "threads": threads, "min_runs": min_runs}
    for key, value in counts.items():
        if value < 1:
            raise ConfigError(f"latency.{key}: {value} is less than 1")
    if channels_last:
        models = {name: _channels_last(model) for name, model in models.items()}
    calls, running = {}, []
    for name, model in models.items():
        inputs = with_batch(to_device(dummy_input, device_of(model)), batch_size)
        if channels_last:
            inputs = _inputs_channels_last(inputs)
        running.append(on_backend(model, inputs, backend, threads=threads))
        calls[name] = partial(milliseconds, running[-1], inputs, clock_for(threads))
    with measuring(*models.values(), *running), cpu_threads(threads):
        columns = in_turn(
            calls,
            warmup=warmup,
            min_runs=min_runs,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
        )
    conditions = {
        "batch_size": batch_size,
        "threads": threads,
        "channels_last": channels_last,
        "backend": backend,
    }
    return _summary(models, columns, conditions)


def _summary(
    models: Mapping[str, nn.Module],
    columns: Mapping[str, Sequence[float]],
    conditions: Mapping[str, Any],
) -> LatencyComparison:
    reference = next(iter(models))
    latencies, ratios, spreads, intervals = {}, {}, {}, {}
    for name, times in columns.items():
        p25, median, p75 = quartiles(times)
        latencies[name] = Latency(
            median_ms=median,
            p25_ms=p25,
            p75_ms=p75,
            best_ms=min(times),
            runs=len(times),
            device=_device_name(device_of(models[name])),
            **conditions,
        )
        low, _, high = quartiles([a / b for a, b in zip(times, columns[reference], strict=True)])
        spreads[name] = (low, high)
        ratios[name], *ends = paired_ratio(times, columns[reference])
        intervals[name] = (ends[0], ends[1])
    times_by_name = {name: list(times) for name, times in columns.items()}
    return LatencyComparison(reference, latencies, ratios, spreads, intervals, times_by_name)


def milliseconds(model: nn.Module, inputs: Any, clock: Clock = time.process_time) -> float:
    """Time one run; on a GPU by its own clock, from an idle device until the work is done.

    Parameters
    ----------
    model, inputs
        What is run.
    clock : callable
        Of :func:`clock_for`, for the CPU.
    """
    device = device_of(model)
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            run(model, inputs)
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
    start = clock()
    run(model, inputs)
    return (clock() - start) * 1e3


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _channels_last(model: nn.Module) -> nn.Module:
    # A copy, because the layout is a property of the parameters themselves.
    return copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _inputs_channels_last(inputs: Any) -> Any:
    def convert(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 4:
            return value.contiguous(memory_format=torch.channels_last)
        return value

    return tree_map(convert, inputs)
