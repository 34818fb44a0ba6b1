"""The exact program of errors under budgets: against all choices, and against what is greedy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from pruning_nets import GroupBlock, mobile_net, plain_net, randomised

from nni_gconv import SecondOrderPruner
from nni_gconv.graph import Coupling
from nni_gconv.pruning.selection.budget import fit
from nni_gconv.pruning.selection.cost import CostModel
from nni_gconv.pruning.selection.exact import (
    ErrorProblem,
    Product,
    Width,
    fewest_errors_within,
    least_error,
)
from nni_gconv.training.zoo import create_model

CONVS = [{"op_types": ["Conv2d"]}]


def random_problem(seed, sets=4, options=4, measures=("macs",)):
    """Layers between random widths, sums and squares of a set among them; curves of any shape."""
    rng = np.random.default_rng(seed)
    kept = [np.sort(rng.choice(12, options, replace=False) + 1)[::-1] for _ in range(sets)]
    errors = [np.concatenate([[0.0], rng.random(options - 1).cumsum()]) for _ in range(sets)]

    def width():
        members = rng.choice(sets, rng.integers(0, 3), replace=False)
        return Width(
            float(rng.integers(0, 5)), tuple((int(s), float(rng.integers(1, 4))) for s in members)
        )

    costs = {
        m: [Product(float(rng.integers(1, 9)), width(), width()) for _ in range(6)]
        for m in measures
    }
    limits = {}
    for m in measures:
        problem = ErrorProblem(kept, errors, costs, {})
        most, least = problem.cost(m, [0] * sets), problem.cost(m, [options - 1] * sets)
        limits[m] = float(round(least + rng.uniform(0.1, 0.9) * (most - least)))
    return ErrorProblem(kept, errors, costs, limits)


def brute_force(problem):
    return min(
        problem.error(chosen)
        for chosen in itertools.product(*[range(len(e)) for e in problem.errors])
        if all(problem.cost(m, chosen) <= limit for m, limit in problem.limits.items())
    )


@pytest.mark.parametrize("measures", [("macs",), ("macs", "params")])
@pytest.mark.parametrize("seed", range(8))
def test_no_choice_has_a_smaller_error(seed, measures):
    problem = random_problem(seed, measures=measures)
    found = least_error(problem)
    if found is None:  # the limits of two measures may exclude each other
        with pytest.raises(ValueError, match="empty"):
            brute_force(problem)
        return
    for measure, limit in problem.limits.items():
        assert problem.cost(measure, found) <= limit * (1 + 1e-6)
    assert problem.error(found) == pytest.approx(brute_force(problem), rel=1e-3, abs=1e-9)


def test_what_cannot_be_reached_is_none():
    problem = random_problem(0)
    assert (
        least_error(ErrorProblem(problem.kept, problem.errors, problem.costs, {"macs": 1.0}))
        is None
    )


def test_long_curves_are_refined_around_the_coarse_choice():
    """Two sets of 200 channels that share a budget: every pair is looked at."""
    steps = np.arange(201)
    errors = [(steps / 200) ** 3, 0.3 * (steps / 200) ** 1.5]
    kept = [200 - steps] * 2
    costs = {"macs": [Product(1.0, Width(0.0, ((0, 1.0),)), Width(3.0, ((1, 1.0),)))]}
    limit = 0.37 * 200 * 203

    def fits(o):
        return (200 - o[0]) * (203 - o[1]) <= limit

    found = fewest_errors_within(errors, kept, costs, {"macs": limit}, fits)
    best = min(errors[0][a] + errors[1][b] for a in steps for b in steps if fits((a, b)))
    assert fits(found)
    assert errors[0][found[0]] + errors[1][found[1]] == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(
    "make", [plain_net, mobile_net, GroupBlock, lambda: create_model("resnet8b", width=0.5)]
)
@pytest.mark.parametrize("measure", ["macs", "params"])
def test_products_are_what_the_cost_model_counts(make, measure):
    net, x = make().eval(), torch.zeros(1, 3, 8, 8)
    coupling = Coupling.trace(net, x)
    cost = CostModel(net, x, coupling)
    sets = [s.classes for s in coupling.sets]
    products = cost.products(measure, sets)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.6):
        gone, kept = coupling.empty(), []
        for coupled in coupling.sets:
            parts = np.zeros(coupled.size, int) if coupled.parts is None else coupled.parts
            away = [
                rng.permutation(own)[: int(share * len(own))]
                for own in (np.flatnonzero(parts == p) for p in np.unique(parts))
            ]
            away = np.concatenate(away).astype(int)
            gone[coupled.classes[away]] = True
            kept.append(np.array([coupled.size - len(away)]))
        problem = ErrorProblem(kept, [np.zeros(1)] * len(kept), {measure: products}, {})
        assert problem.cost(measure, [0] * len(kept)) == pytest.approx(cost(measure, gone))


def pruner_of(net, budget, allocation="exact"):
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return SecondOrderPruner(
        net, CONVS, budget=budget, dummy_input=x[:1], calibration=x, allocation=allocation
    )


@pytest.fixture(scope="module")
def requests():
    torch.manual_seed(0)
    pruner = pruner_of(randomised(create_model("resnet8b", width=0.5)).eval(), {"macs": 0.5})
    return pruner, pruner.requests()


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"macs": 0.6, "params": 0.35}])
def test_the_sum_of_errors_is_below_that_of_any_greedy_order(requests, budget):
    pruner, asked = requests

    def error(gone):
        return sum(
            r.errors[sum(bool(gone[s.classes[step]].all()) for step in r.steps)]
            for r, s in zip(asked, pruner.sets, strict=True)
        )

    found = {}
    for name, changed in {
        "exact": asked,
        "by error for what is saved": [replace(r, errors=None) for r in asked],
        "global": [replace(r, errors=None, unit=1.0) for r in asked],
        "uniform": [replace(r, errors=None, group=None) for r in asked],
    }.items():
        gone = fit(budget, pruner.cost, pruner.sets, changed)
        for measure, share in budget.items():
            assert pruner.cost(measure, gone) <= share * pruner.cost.dense(measure)
        found[name] = error(gone)
    assert all(found["exact"] <= other * (1 + 1e-3) for other in found.values()), found
    assert found["exact"] < 0.99 * found["uniform"]


@pytest.mark.slow
def test_a_latency_is_met_by_the_choice_of_least_error(requests):
    """Latency that counts MACs, and a little more: the search ends just below."""
    pruner, asked = requests

    def latency(gone):
        return 0.1 + 0.9 * pruner.cost("macs", gone) / pruner.cost.dense("macs")

    gone = fit({"latency": 0.6}, pruner.cost, pruner.sets, asked, latency)
    assert 0.55 < latency(gone) <= 0.6
    same = fit({"macs": (latency(gone) - 0.1) / 0.9 + 1e-9}, pruner.cost, pruner.sets, asked)
    assert pruner.cost("macs", same) == pytest.approx(pruner.cost("macs", gone), rel=0.02)
