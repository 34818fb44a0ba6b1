"""The search on a network whose layers differ, where the truth is known."""

import numpy as np
import pytest
from tuning_cases import Truth, best, run, space

from nni_gconv.tuning.front import gain, hypervolume, pareto
from nni_gconv.tuning.options import Options
from nni_gconv.tuning.propose import solve_budget
from nni_gconv.tuning.surrogate import Weights, fit

SEEDS = (0, 2)


@pytest.fixture(scope="module")
def searches():
    return {(seed, learn): run(seed, learn=learn) for seed in SEEDS for learn in (True, False)}


@pytest.mark.slow
def test_learning_fills_the_front_better_than_not_learning(searches):
    learnt = [searches[seed, True][0] / best(seed) for seed in SEEDS]
    alike = [searches[seed, False][0] / best(seed) for seed in SEEDS]
    assert all(a > b for a, b in zip(learnt, alike, strict=True)), (learnt, alike)
    assert np.mean(learnt) > np.mean(alike) + 0.04
    assert np.mean(learnt) > 0.88


@pytest.mark.slow
def test_the_weights_learnt_are_those_of_the_truth(searches):
    for seed in SEEDS:
        _, _, proposer, truth, finished = searches[seed, True]
        found = proposer.surrogate([c for c, _, _ in finished], [s for _, _, s in finished])
        order = np.argsort(truth.weights)
        # Those that matter most are told from those that matter least.
        assert found.mean.layers[order[-4:]].mean() > 2 * found.mean.layers[order[:9]].mean()


@pytest.mark.slow
def test_nothing_is_tried_twice_and_the_budgets_hold(searches):
    for _, tried, proposer, _, _ in searches.values():
        assert len(tried) == 50
        for choice in tried:
            cost = proposer.options.cost(choice)
            assert proposer.low - 1e-6 <= cost <= proposer.high + 1e-6


@pytest.mark.slow
def test_the_same_seed_and_results_give_the_same_proposals(searches):
    again = run(0)
    assert list(again[1]) == list(searches[0, True][1])
    other = run(1, trials=4)
    assert list(other[1]) != list(again[1])[:4]


def test_the_program_finds_the_best_within_a_budget():
    options = Options.from_space(space())
    rng = np.random.default_rng(0)
    weights = Weights(1.0, rng.random(len(options)), (np.zeros(0),) * len(options))
    reached = -np.inf
    for limit in (0.3, 0.5, 0.7, 1.0):
        choice = solve_budget(options, weights, limit)
        assert options.cost(choice) <= limit + 1e-6
        score = weights.score(options, choice)
        assert score >= reached
        reached = score
        # No single change that stays within the budget is better.
        for place, decision in enumerate(options.decisions):
            for option in range(len(decision.values)):
                other = (*choice[:place], option, *choice[place + 1 :])
                if options.cost(other) <= limit:
                    assert weights.score(options, other) <= score + 1e-9
    assert choice == (0,) * len(options)
    assert solve_budget(options, weights, 0.01) is None


def test_few_trials_and_trials_all_alike_say_nothing():
    options = Options.from_space(space())
    zero = (0,) * len(options)
    assert fit(options, [zero, zero], [0.9, 0.8]) is None
    assert fit(options, [zero] * 5, [0.9] * 5) is None


def test_a_key_without_cost_is_learnt_too():
    with_rate = {**space(), "finetune.optimizer.lr": {"_type": "choice", "_value": [0.1, 0.01, 1]}}
    options, truth = Options.from_space(with_rate), Truth(Options.from_space(space()), 0)
    rng = np.random.default_rng(0)
    choices = [tuple(rng.integers(3, size=len(options))) for _ in range(40)]
    scores = [truth.trial(c[:-1]) - [0.0, 0.05, 0.2][c[-1]] for c in choices]
    found = fit(options, choices, scores)
    assert int(np.argmax(found.mean.free[-1])) == 0
    assert solve_budget(options, found.mean, 0.5)[-1] == 0


def test_fronts():
    points = [(0.5, 0.9), (0.7, 0.85), (0.8, 0.95)]
    assert pareto(points) == [(0.5, 0.9), (0.8, 0.95)]
    assert hypervolume(points, (1.0, 0.5)) == pytest.approx(0.3 * 0.4 + 0.2 * 0.45)
    assert gain(points, (0.7, 0.89), (1.0, 0.5)) == 0
    assert gain(points, (0.7, 0.92), (1.0, 0.5)) == pytest.approx(0.1 * 0.02)
