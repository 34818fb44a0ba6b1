"""The default solver: optimal where that can be checked, never below the paper, reproducible."""

import numpy as np
import pytest
from partition_cases import G1, G2, G2B, G3, G6, best_by_brute_force, kernels, planted

from nni_gconv.groupconv.partition import partition, partition_many
from nni_gconv.groupconv.partition.assignment import (
    _by_shortest_paths,
    alternate,
    balanced_assignment,
)
from nni_gconv.groupconv.partition.exact import balanced_splits, count_splits, solve_exactly


def check_balanced(p, rows, cols, groups):
    assert p.row_groups.dtype == p.col_groups.dtype == np.int64
    assert np.bincount(p.row_groups, minlength=groups).tolist() == [rows // groups] * groups
    assert np.bincount(p.col_groups, minlength=groups).tolist() == [cols // groups] * groups


@pytest.mark.parametrize(
    ("scores", "groups", "optimum", "rows", "cols"),
    [
        (G1, 2, 60.5, [0, 1, 0, 1], [0, 1, 0, 1]),
        (G1, 4, 32.5, None, None),
        (G2, 2, 57.60, [0, 0, 1, 1], [0, 1, 1, 0]),
        (G2B, 2, 58.60, [0, 1, 0, 1], [0, 1, 1, 0]),
        (G3, 4, 164.9, [0, 3, 2, 1] * 2, [0, 1, 2, 3] * 2),
        (G6, 2, 85.248, [0, 1, 0, 1], [0, 1] * 4),
    ],
    ids=["G1", "G1-depthwise", "G2", "G2b", "G3", "G6"],
)
def test_vectors(scores, groups, optimum, rows, cols):
    p = partition(scores, groups)
    assert p.retained == pytest.approx(optimum, abs=1e-9)
    assert p.optimal
    if rows is not None:
        assert p.row_groups.tolist() == rows
        assert p.col_groups.tolist() == cols


def search_only(scores, groups, monkeypatch, **options):
    """The search that large matrices get, on small ones."""
    with monkeypatch.context() as patch:
        patch.setattr("nni_gconv.groupconv.partition.solve.solve_exactly", lambda *_: None)
        return partition_many(scores, groups, **options)


@pytest.mark.parametrize(
    ("side", "groups"),
    [(4, 2), (4, 4), (6, 2), (6, 3), (8, 2), pytest.param(8, 4, marks=pytest.mark.slow)],
)
def test_optimal_against_brute_force(side, groups, monkeypatch):
    cases = 2 if (side, groups) == (8, 4) else 8
    for seed in range(cases):
        size = 1 + seed % 3
        scores = kernels(seed, side, side, size)
        optimum = best_by_brute_force(scores, groups)
        assert partition(scores, groups).retained == pytest.approx(optimum, rel=1e-12)
        (found,) = search_only([scores], groups, monkeypatch, sweeps=20)
        assert found.bound >= optimum
        assert found.retained <= optimum * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "groups", "sweeps"),  # the default is 1000 sweeps
    [(4, 2, 60), (6, 2, 60), (6, 3, 60), (8, 2, 60), (8, 4, 400)],
)
def test_search_is_optimal_in_99_percent(side, groups, sweeps, monkeypatch):
    scores = [kernels(1000 + seed, side, side, 1 + 2 * (seed % 2)) for seed in range(100)]
    found = search_only(scores, groups, monkeypatch, sweeps=sweeps)
    best = partition_many(scores, groups)
    hits = sum(f.retained >= b.retained * (1 - 1e-12) for f, b in zip(found, best, strict=True))
    assert hits >= 99


@pytest.mark.parametrize("groups", [8, 16])
def test_planted_blocks_are_always_found(groups):
    results = partition_many([planted(seed, 128, groups) for seed in range(25)], groups)
    assert [p.fraction for p in results] == pytest.approx([1.0] * 25, abs=1e-12)
    assert all(p.optimal for p in results)


def test_planted_blocks_under_noise():
    hidden = planted(0, 128, 8)
    scores = kernels(0, 128, 128) + 1.0 * (hidden > 0)
    p = partition(scores, 8)
    assert p.retained >= scores[hidden > 0].sum() * (1 - 1e-12)


@pytest.mark.parametrize(("rows", "cols", "groups"), [(64, 64, 4), (96, 32, 8), (32, 320, 16)])
def test_never_below_the_paper_and_better_on_average(rows, cols, groups):
    ratios = []
    for seed in range(3):
        scores = kernels(seed, rows, cols)
        paper = partition(scores, groups, method="grps", num_sort_iters=100)
        quick = partition(scores, groups, restarts=0, num_sort_iters=100)
        ours = partition(scores, groups, num_sort_iters=100, sweeps=100)
        check_balanced(ours, rows, cols, groups)
        assert ours.retained == pytest.approx(scores[ours.mask()].sum())
        assert paper.retained <= quick.retained <= ours.retained <= ours.bound
        ratios.append(ours.retained / paper.retained)
    assert np.mean(ratios) > 1.015


@pytest.mark.slow
def test_pointwise_kernels_beat_the_paper_by_six_percent():
    scores = [kernels(seed, 64, 64, size=1) for seed in range(3)]
    paper = partition_many(scores, 4, method="grps", num_sort_iters=100)
    ours = partition_many(scores, 4)
    assert np.mean([o.retained / p.retained for o, p in zip(ours, paper, strict=True)]) > 1.06


def test_same_seed_same_groups_in_any_thread():
    layers = [kernels(seed, 48, 32) for seed in range(4)]
    options = {"num_groups": 4, "sweeps": 60, "seed": 5}
    alone = [partition(layer, **options) for layer in layers]
    for workers in (1, 3):
        for one, other in zip(
            alone, partition_many(layers, workers=workers, **options), strict=True
        ):
            assert np.array_equal(one.row_groups, other.row_groups)
            assert np.array_equal(one.col_groups, other.col_groups)
            assert (one.retained, one.bound) == (other.retained, other.bound)


def test_scale_changes_nothing():
    scores = kernels(3, 32, 32)
    base = partition(scores, 4, sweeps=40)
    for scale in (2.0**-900, 2.0**60, 2.0**900):
        scaled = partition(scores * scale, 4, sweeps=40)
        assert np.array_equal(base.row_groups, scaled.row_groups)
        assert scaled.retained / scale == pytest.approx(base.retained)


@pytest.mark.parametrize("scores", [np.zeros((24, 24)), np.ones((24, 24))], ids=["zeros", "ones"])
@pytest.mark.parametrize("method", ["assignment", "grps", "same", "sort"])
def test_nothing_to_choose(scores, method):
    p = partition(scores, 4, method=method)
    check_balanced(p, 24, 24, 4)
    assert p.retained == scores.sum() / 4
    assert p.fraction == (0.25 if scores.any() else 1.0)


def test_one_group_and_single_channels():
    scores = kernels(0, 6, 4)
    assert partition(scores, 1).retained == pytest.approx(scores.sum())
    assert partition(kernels(0, 40, 40), 40, sweeps=10).optimal


@pytest.mark.parametrize(("items", "groups"), [(60, 3), (64, 16), (300, 5), (512, 4), (40, 40)])
def test_balanced_assignment_is_exact(items, groups):
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(items)
    for profit in (
        rng.standard_normal((items, groups)),
        rng.integers(0, 3, (items, groups)).astype(float),  # ties
        rng.standard_normal((items, 1)) + np.arange(groups) * 10.0,  # one group wanted by all
        np.zeros((items, groups)),
    ):
        places = np.repeat(profit, items // groups, axis=1)
        optimum = places[linear_sum_assignment(places, maximize=True)].sum()
        for solve in (balanced_assignment, _by_shortest_paths):
            chosen = solve(profit)
            assert (np.bincount(chosen, minlength=groups) == items // groups).all()
            assert profit[np.arange(items), chosen].sum() == pytest.approx(optimum, abs=1e-9)


def test_alternation_ends_where_neither_side_gains():
    scores = kernels(1, 32, 48)
    rows, cols, mass = alternate(scores, np.arange(48) % 4, 4)
    again = alternate(scores, cols, 4)
    assert again[2] == pytest.approx(mass)
    assert mass == pytest.approx(scores[rows[:, None] == cols].sum())


def test_all_splits_once():
    for items, groups in [(4, 2), (6, 3), (8, 4), (9, 3), (5, 5), (6, 1)]:
        members = balanced_splits(items, groups)
        assert len({tuple(map(tuple, m)) for m in members.tolist()}) == len(members)
        assert len(members) == count_splits(items, groups)
        assert (np.sort(members.reshape(len(members), -1)) == np.arange(items)).all()


def test_enumeration_knows_its_limit():
    assert solve_exactly(np.ones((32, 32)), 4) is None
    rows, cols = solve_exactly(kernels(0, 64, 8), 2)  # the short side is enumerated
    assert (len(rows), len(cols)) == (64, 8)
