"""Timing calls in turn, A B A B, and how sure the ratio of two of them is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

#: Share of repetitions in which an interval holds the true ratio.
CONFIDENCE = 0.95
#: A cap on seconds still leaves so many rounds, or there would be nothing to compare.
_LEAST_ROUNDS = 3
_RESAMPLES = 1000
#: Timed seconds may take so many by the wall clock: others run too, or a model waits.
_PATIENCE = 5

#: Runs once and returns its milliseconds.
Timed = Callable[[], float]
#: Returns seconds.
Clock = Callable[[], float]


def in_turn(
    calls: Mapping[str, Timed],
    *,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 0.5,
    max_seconds: float | None = None,
) -> dict[str, list[float]]:
    """Time calls in turn; entry k of every list is of the same round.

    Parameters
    ----------
    calls : mapping of str to callable
        Each runs once and returns its milliseconds.
    warmup : int, default 3
        Rounds that are not timed; one where `max_seconds` is spent by then.
    min_runs : int, default 10
        At least so many rounds ...
    min_seconds : float, default 0.5
        ... and at least so many seconds of them for each call, as they are timed; five times as
        many by the wall clock are enough.
    max_seconds : float, optional
        And no more than so many by the wall clock for all together, warm-up included, whatever the
        other two say; three rounds are timed all the same.

    Returns
    -------
    dict of str to list of float
        Milliseconds by name.

    Examples
    --------
    >>> in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, min_runs=2, min_seconds=0.0)
    {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    begun = time.perf_counter()

    def spent() -> bool:
        return max_seconds is not None and time.perf_counter() - begun >= max_seconds

    for number in range(warmup):
        if number and spent():
            break
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds, timed, start = 0, 0.0, time.perf_counter()
    wanted = min_seconds * len(calls)
    # By what was timed, so that a busy machine leaves hardly fewer rounds.
    while rounds < min_runs or timed < 1e3 * wanted:
        if rounds >= _LEAST_ROUNDS and spent():
            break
        if rounds >= min_runs and time.perf_counter() - start >= _PATIENCE * wanted:
            break
        for name, call in calls.items():
            times[name].append(call())
            timed += times[name][-1]
        rounds += 1
    return times


def clock_for(threads: int) -> Clock:
    """Return the clock that a forward pass on the CPU is timed by.

    On one thread it is the process's own CPU time: what a busy machine gives to others meanwhile
    does not count, which on a wall clock hides differences. Several threads wait for each other,
    so that only the wall clock tells what they take.

    Examples
    --------
    >>> clock_for(1) is time.process_time, clock_for(4) is time.perf_counter
    (True, True)
    """
    return time.process_time if threads == 1 else time.perf_counter


def paired_ratio(own: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return the median ratio of paired times, and its 95 % interval.

    The interval is a bootstrap of the rounds (`scipy.stats.bootstrap`, percentile method; Efron
    and Tibshirani 1993). It knows the noise within this measurement, not what another day brings.

    Parameters
    ----------
    own, base : sequence of float
        Times of the two in the same rounds.

    Returns
    -------
    (float, float, float)
        Ratio, lower and upper end.

    Examples
    --------
    >>> paired_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    (0.5, 0.5, 0.5)
    """
    import numpy as np
    from scipy.stats import bootstrap

    ratios = np.divide(own, base)
    middle = float(np.median(ratios))
    if np.ptp(ratios) == 0 or len(ratios) < 3:  # nothing varies, or too few to draw from
        return middle, float(ratios.min()), float(ratios.max())
    found = bootstrap(
        (ratios,),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return middle, float(found.low), float(found.high)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile.

    Examples
    --------
    >>> quartiles([1, 2, 3, 4, 5])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
