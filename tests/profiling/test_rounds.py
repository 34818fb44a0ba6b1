"""Rounds of timed calls, their cap, and the interval of a paired ratio."""

import numpy as np
import pytest

from nni_gconv.profiling import in_turn, machine_of, paired_ratio


def counted():
    calls = []
    return calls, {name: lambda n=name: calls.append(n) or 1.0 for name in "ab"}


def test_calls_run_in_turn():
    calls, timed = counted()
    found = in_turn(timed, warmup=1, min_runs=4, min_seconds=0)
    assert found == {"a": [1.0] * 4, "b": [1.0] * 4}
    assert calls == ["a", "b"] * 5


def test_a_cap_leaves_three_rounds_and_one_to_warm_up():
    calls, timed = counted()
    found = in_turn(timed, warmup=5, min_runs=100, min_seconds=60, max_seconds=0)
    assert len(found["a"]) == 3
    assert len(calls) == 8


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        base = generator.lognormal(0, 0.3, 40)  # the machine is slow for both at once
        own = 0.8 * base * generator.lognormal(0, 0.1, 40)
        ratio, low, high = paired_ratio(own, base)
        assert low <= ratio <= high
        assert high - low < 0.2  # though either time alone varies by far more
        inside += low <= 0.8 <= high
    assert inside >= 50


def test_intervals_of_few_runs_and_of_equal_ones():
    assert paired_ratio([1.0], [2.0]) == (0.5, 0.5, 0.5)
    assert paired_ratio([1.0, 3.0], [2.0, 2.0]) == (1.0, 0.5, 1.5)
    assert paired_ratio([2.0] * 5, [4.0] * 5) == (0.5, 0.5, 0.5)


def test_the_machine_is_named():
    found = machine_of(threads=3)
    assert found["threads"] == 3
    assert "cores" in found["device"]
    assert found["torch"] == pytest.importorskip("torch").__version__


def test_seconds_are_those_that_are_timed():
    calls, timed = counted()  # each says that it took a millisecond
    assert len(in_turn(timed, warmup=0, min_runs=1, min_seconds=0.05)["a"]) == 50
    still = {"a": lambda: calls.append("a") or 0.0}
    found = in_turn(still, warmup=0, min_runs=2, min_seconds=1e-4)  # no clock moves: it ends
    assert len(found["a"]) >= 2
