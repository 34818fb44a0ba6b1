"""How many channels of each set go, and which."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_gconv.pruning.selection.allocation import (
    Request,
    fit_budget,
    fit_measured,
    removal_steps,
    take,
)


def request(scores, *, blocks=None, min_channels=1, round_to=1, **options):
    scores = np.asarray(scores, dtype=float)
    steps = removal_steps(scores, blocks=blocks, min_channels=min_channels, round_to=round_to)
    return Request(scores, steps, **options)


def gone(req, steps):
    return sorted(int(c) for step in req.steps[:steps] for c in step)


def left(req, steps):
    return req.size - len(gone(req, steps))


# -- steps ----------------------------------------------------------------------------------------


def test_low_scores_go_first_and_ties_by_index():
    steps = removal_steps(np.array([2.0, 1.0, 1.0, 0.0, 3.0]))
    assert [s.tolist() for s in steps] == [[3], [1], [2], [0]]


def test_every_block_loses_one_a_step():
    blocks = np.array([0, 1, 0, 1, 0, 1])
    steps = removal_steps(np.array([5.0, 1, 4, 9, 3, 2]), blocks=blocks)
    assert [s.tolist() for s in steps] == [[4, 1], [2, 5]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 12), st.integers(1, 9), st.sampled_from([1, 2, 3]), st.data()
)
def test_steps_keep_floors_multiples_and_balance(size, min_channels, round_to, groups, data):
    size *= groups
    scores = np.array(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)), float)
    blocks = np.arange(size) // (size // groups) if groups > 1 else None
    steps = removal_steps(scores, blocks=blocks, min_channels=min_channels, round_to=round_to)
    out = np.concatenate(steps) if steps else np.zeros(0, int)
    assert len(set(out.tolist())) == len(out)
    remaining = size
    for step in steps:
        remaining -= len(step)
        assert remaining >= max(min_channels, 1)
        assert remaining % round_to == 0
        if blocks is not None:
            assert len(set(np.bincount(blocks[step], minlength=groups).tolist())) == 1
    # The next step would have gone below the floor.
    piece = np.lcm(round_to, groups)
    assert remaining - (piece if steps else size % piece or piece) < max(min_channels, 1)


# -- ratios and thresholds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [(10, 0.1, 1), (10, 0.25, 2), (10, 0.35, 4), (64, 0.3, 19), (8, 1.0, 7), (8, 0.0, 0)],
)
def test_a_ratio_means_the_nearest_count(size, ratio, expected):
    assert take([request(np.arange(size), ratio=ratio)]) == [expected]


def test_a_ratio_under_round_to_means_the_nearest_that_can_be_had():
    req = request(np.arange(24), round_to=8, ratio=0.4)  # 9.6 asked: 8 is nearer than 16
    assert left(req, take([req])[0]) == 16
    req = request(np.arange(24), round_to=8, ratio=0.5)  # 12 asked: as far to 8 as to 16
    assert left(req, take([req])[0]) == 16


def test_min_channels_holds_against_any_ratio():
    req = request(np.arange(10), min_channels=7, ratio=0.9)
    assert left(req, take([req])[0]) == 7


def test_a_threshold_removes_what_scores_less():
    req = request([0.1, 0.5, 0.2, 0.9, 0.3], threshold=0.3)
    assert gone(req, take([req])[0]) == [0, 2]
    assert take([request([0.1, 0.2], threshold=5.0)]) == [1]  # one always stays
    assert take([request([0.1, 0.2], threshold=0.1)]) == [0]


def test_neither_ratio_nor_threshold_removes_nothing():
    assert take([request(np.arange(4))]) == [0]


@pytest.mark.parametrize("ratio", [0.0, 0.37, 0.5, 0.9])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.37), (0.25, 1.0), (0.33, 0.34), (0.41, 0.59)])
def test_bounds_are_never_crossed_where_the_channels_allow(ratio, low, high):
    req = request(np.arange(10), ratio=ratio, low=low, high=high)
    share = len(gone(req, take([req])[0])) / 10
    assert share <= high + 1e-9
    if np.ceil(low * 10) <= np.floor(high * 10):
        assert share >= low


# -- global groups --------------------------------------------------------------------------------


def test_a_global_group_ranks_layers_by_scores_relative_to_their_mean():
    weak = request([1.0, 1.0, 1.0, 97.0], ratio=0.5, group="g")
    even = request([1000.0] * 4, ratio=0.5, group="g")
    assert take([weak, even]) == [3, 1]
    assert take([even, weak]) == [1, 3]


def test_groups_do_not_see_each_other():
    one = request([1.0, 1.0, 1.0, 97.0], ratio=0.5, group=1)
    two = request([1000.0] * 4, ratio=0.5, group=2)
    assert take([one, two]) == [2, 2]


def test_bounds_hold_under_global_ranking():
    weak = request([1.0, 1.0, 1.0, 97.0], ratio=0.5, group="g", high=0.5)
    even = request([1000.0] * 4, ratio=0.5, group="g")
    assert take([weak, even]) == [2, 2]
    weak = request([1.0, 1.0, 1.0, 97.0], ratio=0.25, group="g")
    even = request([1000.0] * 4, ratio=0.25, group="g", low=0.25)
    assert take([weak, even]) == [1, 1]


def test_a_global_group_removes_what_was_asked_of_all_together():
    rng = np.random.default_rng(0)
    requests = [request(rng.random(n), ratio=0.3, group=0) for n in (16, 40, 64)]
    taken = take(requests)
    assert sum(taken) == 36  # 0.3 of 120
    assert len(set(taken)) > 1


# -- budgets --------------------------------------------------------------------------------------


def chain_cost(requests, sizes=(3, 5)):
    """Weights of a chain of layers: products of neighbouring widths, so not separable."""

    def cost(steps):
        widths = [sizes[0], *(left(r, k) for r, k in zip(requests, steps, strict=True)), sizes[1]]
        return float(sum(a * b for a, b in itertools.pairwise(widths)))

    return cost


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 7), st.sampled_from([1, 2])), min_size=1, max_size=3),
    st.floats(0.05, 1.05),
    st.booleans(),
    st.data(),
)
def test_a_budget_against_brute_force(shapes, share, ranked, data):
    requests = [
        request(
            data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)),
            round_to=r,
            group=0 if ranked else None,
        )
        for n, r in shapes
    ]
    cost = chain_cost(requests)
    limit = share * cost([0] * len(requests))
    taken = fit_budget(requests, cost, limit)
    choices = list(itertools.product(*[range(r.most() + 1) for r in requests]))
    feasible = [c for c in choices if cost(c) <= limit]
    if not feasible:
        assert taken == [r.most() for r in requests]
        return
    assert cost(taken) <= limit
    # Minimal: whatever single step is put back, the limit is crossed ...
    for i in range(len(taken)):
        if taken[i]:
            assert cost([k - (j == i) for j, k in enumerate(taken)]) > limit
    # ... so that it ends within one smallest step of the limit.
    put_back = [
        cost([k - (j == i) for j, k in enumerate(taken)]) for i in range(len(taken)) if taken[i]
    ]
    if put_back:
        assert limit - cost(taken) < min(put_back) - cost(taken)
    else:
        assert cost([0] * len(requests)) <= limit
    # And where any choice at all is within 1 % of the limit, so is this one.
    if not ranked and max(cost(c) for c in feasible) >= 0.99 * limit:
        assert cost(taken) >= 0.99 * limit


def test_no_choice_is_close_where_a_budget_is_not():
    """Few, large steps; a greedy choice alone often misses what can be had."""
    rng = np.random.default_rng(0)
    reachable = 0
    for _ in range(150):
        requests = [request(rng.random(8 * n), round_to=8) for n in rng.integers(1, 6, size=4)]
        worth = [np.sort(rng.integers(5, 60, size=5)) for _ in requests]

        def cost(steps, worth=worth):
            return 1000.0 - sum(int(w[:n].sum()) for w, n in zip(worth, steps, strict=True))

        limit = rng.uniform(cost([r.most() for r in requests]), 1000)
        every = itertools.product(*[range(r.most() + 1) for r in requests])
        nearest = max(c for c in map(cost, every) if c <= limit)
        found = cost(fit_budget(requests, cost, limit))
        assert found <= limit
        assert (found >= 0.99 * limit) == (nearest >= 0.99 * limit)
        if nearest < 0.99 * limit:
            assert found == nearest
        reachable += nearest >= 0.99 * limit
    assert reachable > 100


def test_large_steps_are_exchanged_until_the_limit_is_near():
    # What the first loses at once, the second loses in four steps that come closer.
    requests = [request(np.arange(2)), request(np.arange(5))]
    worth = [[10.0], [4.0, 3.0, 3.0, 3.0]]

    def cost(steps):
        return 24.5 - sum(sum(w[:n]) for w, n in zip(worth, steps, strict=True))

    assert fit_budget(requests, cost, 14.6) == [1, 0]
    assert fit_budget(requests, cost, 11.6) == [0, 4]
    assert fit_budget(requests, cost, 11.4) == [1, 1]


def test_of_the_exchanges_the_one_that_hurts_scores_least_is_made():
    # Both the second and the third can take the place of the first, whose step is too large.
    big = request([1.0, 50.0], group=0)
    weak, strong = request([2.0, 60.0], group=0), request([3.0, 60.0], group=0)

    def cost(steps):
        return 100 - 40 * steps[0] - 30 * steps[1] - 30 * steps[2]

    for others, expected in (((weak, strong), [0, 1, 0]), ((strong, weak), [0, 0, 1])):
        assert fit_budget([big, *others], cost, 70.5) == expected


def test_nothing_dead_returns_for_something_strong():
    # Only the strong one's step would come close to the limit; it is not what the scores say.
    dead, strong = request([0.0, 9.0], group=0), request([8.0, 9.0], group=0)

    def cost(steps):
        return 100 - 40 * steps[0] - 30 * steps[1]

    assert fit_budget([dead, strong], cost, 70.0) == [1, 0]
    alone = [request(r.scores) for r in (dead, strong)]
    assert fit_budget(alone, cost, 70.0) == [0, 1]


def test_a_search_for_the_nearest_ends_where_nothing_is_near():
    calls = []

    def cost(steps):
        calls.append(steps)
        return 1000.0 - 30 * sum(steps)

    requests = [request(np.arange(9), round_to=4) for _ in range(40)]
    assert sum(fit_budget(requests, cost, 929.0)) == 3  # 910: nothing lies from 920 to 929
    assert len(calls) < 4200


def test_sets_without_a_group_lose_equal_shares():
    requests = [request(np.arange(n)) for n in (20, 40, 80)]
    total = 140.0
    taken = fit_budget(requests, lambda steps: total - sum(steps), limit=70.0)
    assert taken == [10, 20, 40]


def test_a_ranked_budget_takes_the_weakest_first():
    weak = request([0.1] * 9 + [100.0], group=0)
    even = request([5.0] * 10, group=0)
    assert fit_budget([weak, even], lambda s: 20 - sum(s), limit=12.0) == [8, 0]


def test_a_budget_keeps_bounds():
    requests = [request(np.arange(10), high=0.2), request(np.arange(10), low=0.3)]
    assert fit_budget(requests, lambda s: 20 - sum(s), limit=20) == [0, 3]
    assert fit_budget(requests, lambda s: 20 - sum(s), limit=10) == [2, 8]
    assert fit_budget(requests, lambda s: 20 - sum(s), limit=1) == [2, 9]


# -- measured budgets -----------------------------------------------------------------------------


def counting(cost):
    seen = []

    def measure(steps):
        seen.append(list(steps))
        return cost(steps)

    return measure, seen


def test_a_measured_budget_halves_its_way():
    requests = [request(np.arange(n)) for n in (64, 128)]
    measure, seen = counting(lambda s: 1 - (s[0] / 64 + s[1] / 128) / 2)
    taken, found = fit_measured(requests, measure, 0.6)
    assert 0.59 <= found <= 0.6
    assert found == measure(taken)
    assert abs(taken[0] / 64 - taken[1] / 128) < 0.02  # a common share
    assert len(seen) - 1 <= 10


def test_a_measured_budget_that_cannot_be_reached_measures_once():
    measure, seen = counting(lambda s: 1 - sum(s) / 100)
    taken, found = fit_measured([request(np.arange(11))], measure, 0.5)
    assert (taken, found, len(seen)) == ([10], 0.9, 1)


def test_a_measured_budget_starts_where_it_is_told():
    measure, _ = counting(lambda s: 1 - sum(s) / 20)
    requests = [request(np.arange(10)), request(np.arange(10))]
    taken, _ = fit_measured(requests, measure, 0.7, start=[6, 0])
    assert taken == [6, 0]
    taken, found = fit_measured(requests, measure, 0.5, start=[6, 0])
    assert taken[0] >= 6
    assert found <= 0.5


def test_what_is_returned_was_measured_itself_even_if_time_is_not_monotone():
    def noisy(steps):
        return 1 - steps[0] / 40 + 0.2 * (steps[0] % 3 == 0)

    measure, seen = counting(noisy)
    taken, found = fit_measured([request(np.arange(32))], measure, 0.7)
    assert found <= 0.7
    assert taken in seen
    assert found == noisy(taken)
