"""Greedy elimination against least squares solved anew, and against all subsets."""

import itertools

import numpy as np
import pytest
import torch

from nni_gconv.pruning.criteria import elimination
from nni_gconv.pruning.criteria.elimination import Reader, eliminate

RIDGE = 1e-9


def layer(channels, taps, filters=5, seed=0, correlated=True):
    """Moments of what a layer reads, its weight, and its Reader."""
    generator = torch.Generator().manual_seed(seed)
    size = channels * taps
    x = torch.randn(400, size, generator=generator, dtype=torch.float64)
    if correlated:
        x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    moments = x.T @ x / len(x)
    weight = torch.randn(filters, size, generator=generator, dtype=torch.float64)
    columns = [list(range(c * taps, (c + 1) * taps)) for c in range(channels)]
    energy = float((weight @ moments * weight).sum())
    return moments, weight, Reader(columns, moments, weight, energy)


def error_without(moments, weight, columns, gone):
    """Relative error of the best weights on what is left: least squares solved from nothing."""
    left = [c for i, own in enumerate(columns) if i not in gone for c in own]
    whole = float((weight @ moments * weight).sum())
    if not left:
        return 1.0
    cross = weight @ moments[:, left]
    explained = torch.linalg.solve(moments[left][:, left], cross.T).T
    return (whole - float((explained * cross).sum())) / whole


@pytest.mark.parametrize(("channels", "taps"), [(5, 1), (4, 3), (6, 2)])
def test_the_running_error_is_that_of_least_squares(channels, taps):
    moments, weight, reader = layer(channels, taps)
    order, error = eliminate([reader], ridge=RIDGE)
    assert sorted(order.tolist()) == list(range(channels))
    for k in range(1, channels + 1):
        expected = error_without(moments, weight, reader.columns, set(order[:k].tolist()))
        assert error[k - 1] == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_each_step_is_the_cheapest_one_by_brute_force(seed):
    made = [layer(5, 1, seed=seed), layer(5, 2, filters=3, seed=seed + 100)]
    order, _ = eliminate([reader for *_, reader in made], ridge=RIDGE)
    gone: set[int] = set()
    for channel in order.tolist():
        costs = {
            c: sum(error_without(m, w, r.columns, gone | {c}) for m, w, r in made)
            for c in range(5)
            if c not in gone
        }
        assert channel == min(costs, key=costs.get)
        gone.add(channel)


def test_greedy_is_near_the_best_subset():
    ratios = []
    for seed in range(10):
        moments, weight, reader = layer(8, 1, seed=seed)
        order, _ = eliminate([reader], ridge=RIDGE)
        found = error_without(moments, weight, reader.columns, set(order[:4].tolist()))
        best = min(
            error_without(moments, weight, reader.columns, set(gone))
            for gone in itertools.combinations(range(8), 4)
        )
        ratios.append(found / best)
    assert np.median(ratios) < 1.2


def test_uncorrelated_channels_go_by_their_own_energy():
    _, weight, _ = layer(6, 1)
    power = torch.arange(1.0, 7.0, dtype=torch.float64)
    reader = Reader([[c] for c in range(6)], power.diag(), weight, 1.0)
    order, _ = eliminate([reader], ridge=RIDGE)
    assert order.tolist() == (weight.square().sum(0) * power).argsort().tolist()


def test_a_channel_that_nothing_reads_goes_first_and_costs_nothing():
    moments, weight, _reader = layer(4, 1)
    moments[2] = moments[:, 2] = 0
    order, error = eliminate([Reader([[0], [1], [], [3]], moments, weight, 1.0)])
    assert order[0] == 2
    assert error[0] == 0


def test_singular_moments_do_not_break_it():
    _moments, weight, reader = layer(6, 1)
    x = torch.randn(3, 6, dtype=torch.float64)  # fewer images than channels
    order, error = eliminate([Reader(reader.columns, x.T @ x, weight, 1.0)])
    assert sorted(order.tolist()) == list(range(6))
    assert np.isfinite(error).all()
    assert (np.diff(error) >= 0).all()


def test_large_sets_go_several_at_a_time():
    _moments, _weight, reader = layer(300, 1, correlated=False)
    order, error = eliminate([reader])
    assert sorted(order.tolist()) == list(range(300))
    assert (np.diff(error) >= 0).all()


def mixed(seed, filters=5):
    """A reader that sees channels in 0, 1, 2 or 3 columns, shuffled, and 4 columns of others."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(0, 4, (24,), generator=generator).tolist()
    size = sum(widths) + 4
    x = torch.randn(300, size, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(filters, size, generator=generator, dtype=torch.float64)
    taken = iter(torch.randperm(size, generator=generator).tolist())
    columns = [[next(taken) for _ in range(width)] for width in widths]
    moments = x.T @ x / len(x)
    return Reader(columns, moments, weight, float((weight @ moments * weight).sum()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("filters", [5, 80])
def test_beginning_anew_changes_nothing(seed, filters, monkeypatch):
    """Whether what is left begins anew after every channel, now and then, or never."""
    readers = [mixed(seed, filters), mixed(seed + 10)]
    order, error = eliminate(readers)
    for share in (0.0, 2.0):
        monkeypatch.setattr(elimination, "_ANEW", share)
        other, its = eliminate(readers)
        assert other.tolist() == order.tolist()
        assert its == pytest.approx(error, rel=1e-9, abs=1e-12)
