"""Group counts: the best within the budget, never over it, proven against enumeration."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from nni_gconv import search_groups
from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.groupconv import read_group_config
from nni_gconv.groupconv.partition import l1, taylor
from nni_gconv.groupconv.search import (
    ChoiceProblem,
    ChoiceRules,
    LayerTimer,
    cost_tables,
    grouped_copy,
    score_tables,
    slower_than_dense,
    solve_close,
    solve_exact,
    solve_max_cost,
)
from nni_gconv.groupconv.search import budget as search_budget
from nni_gconv.groupconv.search.knapsack import _highs_silenced
from nni_gconv.groupconv.search.timing import LayerLatency
from nni_gconv.profiling import count
from nni_gconv.training.zoo import create_model

CONVS = [{"op_types": ["Conv2d"]}]
CIFAR = torch.zeros(2, 3, 32, 32)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.Conv2d(24, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


EXAMPLE = torch.zeros(2, 3, 12, 12)


def best_of_all(problem):
    """Every choice there is."""
    best = None
    for chosen in itertools.product(*(range(len(v)) for v in problem.values)):
        if problem.fits(chosen) and (best is None or problem.value(chosen) > best):
            best = problem.value(chosen)
    return best


def random_problem(seed, layers=5, measures=("params", "macs")):
    """Options that lose value and cost as they go on; limits between all and nothing."""
    rng = np.random.default_rng(seed)
    values, costs, limits = [], {m: [] for m in measures}, {}
    for _ in range(layers):
        options = int(rng.integers(1, 6))
        values.append(-np.sort(-rng.random(options)))
        for measure in measures:
            costs[measure].append(int(rng.integers(1, 4000)) * 2 ** np.arange(options)[::-1])
    for measure in measures:
        low, high = (sum(f(c) for c in costs[measure]) for f in (np.min, np.max))
        limits[measure] = int(low + rng.random() * (high - low)) - int(rng.random() < 0.1)
    return ChoiceProblem(values, costs, limits)


@pytest.mark.parametrize("seed", range(40))
def test_exact_is_the_best_of_all_choices(seed):
    problem = random_problem(seed)
    best, found = best_of_all(problem), solve_exact(problem)
    if best is None:
        assert found is None
        return
    assert problem.fits(found.chosen)
    assert found.value == problem.value(found.chosen) == pytest.approx(best, rel=1e-12)
    assert best <= found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_local_search_is_within_the_budget_and_its_bound_holds(seed):
    problem = random_problem(seed)
    best, found = best_of_all(problem), solve_max_cost(problem)
    assert (found is None) == (best is None)
    if found is not None:
        assert problem.fits(found.chosen)
        assert found.value <= best * (1 + 1e-12)
        assert found.bound >= best * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_of_the_choices_close_to_a_limit_the_best_is_found(seed):
    problem = random_problem(seed)
    floors = {m: -(-99 * limit // 100) for m, limit in problem.limits.items()}
    whole, found = solve_exact(problem), solve_close(problem, floors)
    if whole is None:
        assert found is None
        return

    def close(chosen):
        return any(problem.cost(m, chosen) >= floor for m, floor in floors.items())

    every = itertools.product(*(range(len(v)) for v in problem.values))
    best = max((problem.value(c) for c in every if problem.fits(c) and close(c)), default=None)
    assert problem.fits(found.chosen)
    assert found.bound == whole.bound
    if best is None or close(whole.chosen):
        assert found == whole
    else:
        assert close(found.chosen)
        assert found.value == pytest.approx(best, rel=1e-12)


@pytest.mark.slow
def test_a_search_that_is_told_to_fills_the_budget():
    """Most score leaves 2 % of it here; the pruners ask for 1 % at the most."""
    torch.manual_seed(2)
    net = create_model("resnet20", in_channels=1, width=0.5)
    example, dense = torch.zeros(1, 1, 8, 8), count(net, torch.zeros(1, 1, 8, 8)).macs
    arguments = {"budget": {"macs": 0.5}, "score": "geometric"}
    most = search_groups(net, example, CONVS, **arguments)
    filled = search_groups(net, example, CONVS, **arguments, fill=0.99)
    assert most.macs < 0.98 * 0.5 * dense
    assert 0.99 * 0.5 * dense <= filled.macs <= 0.5 * dense
    assert filled.retained < most.retained <= filled.bound
    assert 0 < filled.gap < 0.01
    assert most.gap == 0


def test_a_limit_is_exact_to_the_last_unit():
    values = [[1.0, 0.5], [1.0, 0.5]]
    costs = {"macs": [[10**9 + 1, 10**6], [10**9 + 3, 10**6]]}
    for limit, expected in ((2 * 10**9 + 4, (0, 0)), (2 * 10**9 + 3, (0, 1))):
        problem = ChoiceProblem(values, costs, {"macs": limit})
        found = solve_exact(problem)
        assert problem.cost("macs", found.chosen) <= limit
        assert found.value == problem.value(expected)


def test_standard_output_keeps_all_but_the_lines_of_highs(capfd):
    with _highs_silenced():
        os.write(1, b"HighsMipSolverData: debugging\nof another thread\n")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "of another thread\nafter\n"


def test_the_step_that_retains_most_is_taken_first():
    """The original's error: it takes the step that retains least (B, .425 lost instead of .35)."""
    retained = {"A": [1.0, 0.7, 0.5], "B": [1.0, 0.65, 0.6]}
    costs = [[4, 2, 1], [4, 2, 1]]
    problem = ChoiceProblem(
        [[v / 2 for v in values] for values in retained.values()], {"params": costs}, {"params": 3}
    )
    found = solve_max_cost(problem)
    assert found.chosen == (1, 2)
    assert 1 - found.value == pytest.approx(0.35)
    assert 1 - problem.value((2, 1)) == pytest.approx(0.425)


def test_local_search_goes_on_while_something_fits():
    problem = ChoiceProblem([[9.0, 1.0], [3.0, 1.0]], {"params": [[9, 1], [3, 1]]}, {"params": 5})
    assert solve_max_cost(problem).chosen == (1, 0)  # the best step does not fit, the other does


@pytest.mark.slow
@pytest.mark.parametrize("score", ["relative", "absolute", "geometric"])
@pytest.mark.parametrize("budget", [{"params": 0.4}, {"macs": 0.5}, {"params": 0.5, "macs": 0.35}])
def test_a_small_net_is_searched_exhaustively(score, budget):
    model = small_net()
    found = search_groups(model, EXAMPLE, CONVS, budget, score=score)
    tables = score_tables(cost_tables(model, EXAMPLE, CONVS), model).layers
    assert [t.name for t in tables] == ["2", "4", "5"] == list(found)
    dense, best = count(model, EXAMPLE), 0.0
    total = sum(t.total for t in tables)
    for chosen in itertools.product(*(range(len(t.choices)) for t in tables)):
        groups = {t.name: t.choices[o] for t, o in zip(tables, chosen, strict=True)}
        costs = count(grouped_copy(model, groups), EXAMPLE)._asdict()
        if any(costs[m] > v * getattr(dense, m) for m, v in budget.items()):
            continue
        if score != "absolute":
            shares = [t.fraction(o) for t, o in zip(tables, chosen, strict=True)]
            kept = np.mean(shares) if score == "relative" else np.prod(shares) ** (1 / len(shares))
        else:
            kept = sum(t.retained[o] for t, o in zip(tables, chosen, strict=True)) / total
        best = max(best, kept)
    assert found.retained == pytest.approx(best, rel=1e-12)
    assert found.gap < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["exact", "max_cost"])
@pytest.mark.parametrize("name", ["resnet14", "resnet14b", "preresnet11", "densenet10", "vgg11"])
def test_counts_are_those_of_the_grouped_network_and_within_the_budget(name, strategy):
    torch.manual_seed(1)
    model = create_model(name, width=0.5)
    dense = count(model, CIFAR)
    budget = {"params": 0.6, "macs": 0.55}
    found = search_groups(model, CIFAR, CONVS, budget, strategy=strategy)
    assert count(grouped_copy(model, found), CIFAR) == (found.params, found.macs)
    assert found.params <= 0.6 * dense.params
    assert found.macs <= 0.55 * dense.macs
    assert found.dense == dense
    assert 0 < found.retained <= found.bound <= 1
    assert any(g > 1 for g in found.values())


@pytest.mark.slow
def test_exact_retains_at_least_what_the_local_search_and_equal_counts_do():
    torch.manual_seed(0)
    model = create_model("preresnet29")
    uniform = search_groups(model, CIFAR, [{**CONVS[0], "num_groups": 2}], {"params": 1.0})
    assert set(uniform.values()) == {2}
    budget = {"params": uniform.params, "macs": uniform.macs}
    exact = search_groups(model, CIFAR, CONVS, budget)
    local = search_groups(model, CIFAR, CONVS, budget, strategy="max_cost")
    assert exact.retained >= local.retained - 1e-12
    assert exact.retained >= uniform.retained - 1e-12
    assert exact.params <= uniform.params
    assert exact.macs <= uniform.macs


def test_absolute_counts_and_fractions_are_the_same_budget():
    model = small_net()
    dense = count(model, EXAMPLE)
    half = search_groups(model, EXAMPLE, CONVS, {"params": 0.5})
    same = search_groups(model, EXAMPLE, CONVS, {"params": dense.params // 2})
    assert dict(half) == dict(same)


def test_a_wide_budget_leaves_everything_dense():
    for strategy in ("exact", "max_cost"):
        found = search_groups(small_net(), EXAMPLE, CONVS, {"macs": 1.0}, strategy=strategy)
        assert set(found.values()) == {1}
        assert found.retained == found.bound == 1.0
        assert found.macs == found.dense.macs


@pytest.mark.slow
def test_same_seed_same_result():
    model = create_model("preresnet11")
    first, second = (search_groups(model, CIFAR, CONVS, {"macs": 0.4}) for _ in range(2))
    assert first.to_dict() == second.to_dict()


@pytest.mark.slow
def test_the_model_and_the_random_state_are_left_alone(monkeypatch):
    quick = partial(LayerTimer, min_seconds=0.01)
    monkeypatch.setattr("nni_gconv.groupconv.search.search.LayerTimer", quick)
    model = small_net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    search_groups(model, EXAMPLE, CONVS, {"latency": 1.0})
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_entries_fix_and_cap_group_counts():
    config_list = [
        *CONVS,
        {"op_names": ["2"], "num_groups": 8},
        {"op_names": ["4"], "max_group_size": 6},
        {"op_names": ["5"], "num_groups": 3},
    ]
    found = search_groups(small_net(), EXAMPLE, config_list, {"params": 1.0})
    assert dict(found) == {"2": 8, "4": 4}
    assert "colours" in found.skipped["0"]
    assert found.skipped["5"] == "3 groups do not divide its 16 filters and 24 input channels"


def test_a_cap_that_no_count_keeps_is_a_reason():
    tables = cost_tables(small_net(), EXAMPLE, [*CONVS, {"op_names": ["4"], "max_group_size": 2}])
    assert "no allowed number of groups leaves 2 or fewer" in tables.skipped["4"]


def test_rules_limit_every_layer():
    model = small_net()
    tables = cost_tables(model, EXAMPLE, CONVS, ChoiceRules(max_groups=4, min_factor=5))
    assert [t.choices for t in tables.layers] == [(1, 2), (1, 2), (1, 2)]
    tables = cost_tables(model, EXAMPLE, CONVS, ChoiceRules(depthwise=True))
    assert tables.layers[0].choices == (1, 2, 4, 8, 16)


class Shared(nn.Module):
    """A layer used twice, one with two names, two that share a weight, one that never runs."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.named = nn.Conv2d(8, 8, 1)
        self.again = self.named
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.idle = nn.Conv2d(8, 8, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))

    def forward(self, x):
        x = self.twice(nn.functional.max_pool2d(self.twice(x), 2))
        return self.normed(self.two(self.one(self.again(x))))


def test_what_is_shared_is_counted_once_or_left_out():
    model, example = Shared(), torch.zeros(1, 8, 8, 8)
    config_list = [*CONVS, {"op_types": ["ParametrizedConv2d"]}]
    found = search_groups(model, example, config_list, {"params": 0.75})
    assert list(found) == ["twice", "named", "idle"]
    assert "again" not in found.skipped  # the layer named, selected once
    assert found.skipped["one"] == "it shares its weight with two"
    assert found.skipped["two"] == "it shares its weight with one"
    assert "computed" in found.skipped["normed"]
    assert count(grouped_copy(model, found), example) == (found.params, found.macs)


def test_criteria_are_names_or_scores():
    model = small_net()
    plain = search_groups(model, EXAMPLE, CONVS, {"macs": 0.4}, criterion="l1")
    scores = {n: l1(m.weight) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    given = search_groups(model, EXAMPLE, CONVS, {"macs": 0.4}, criterion=scores)
    assert given.to_dict() == plain.to_dict()
    model(torch.randn(2, 3, 12, 12)).square().sum().backward()
    scores = {n: taylor(m.weight, m.weight.grad) for n, m in model.named_modules()
              if isinstance(m, nn.Conv2d)}  # fmt: skip
    assert search_groups(model, EXAMPLE, CONVS, {"macs": 0.4}, criterion=scores).macs


def broken(model):
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"budget": {"params": 0.01}}, BudgetError,
         r"budget: params of 0.010 of dense \(67\) cannot be reached; the group counts allowed "
         r"reach 0\.\d{3} \([\d,]+\)"),
        ({"budget": {"macs": 0.01}, "strategy": "max_cost"}, BudgetError, "budget: macs of 0.010"),
        ({"budget": {}}, ConfigError, "budget: expected a mapping"),
        ({"budget": {"mac": 0.5}}, ConfigError, "did you mean 'macs'"),
        ({"strategy": "ilp"}, ConfigError, "unknown strategy 'ilp'"),
        ({"score": "rel"}, ConfigError, "unknown score 'rel'; did you mean 'relative'"),
        ({"criterion": "l3"}, ConfigError, "unknown criterion 'l3'"),
        ({"criterion": {"1": np.ones((16, 16))}}, ConfigError, "no scores for the layer '2'"),
        ({"criterion": {str(i): np.ones((16, 16)) for i in range(6)}}, ConfigError,
         r"criterion\['4'\]: shape \(16, 16\) is not \(F, C\) = \(24, 16\)"),
        ({"model": broken(small_net())}, ConfigError, "l2 of 2: scores are finite"),
        ({"max_groups": 0}, ConfigError, "max_groups: 0 is not allowed"),
        ({"fill": 1.5}, ConfigError, "fill: 1.5 is not allowed"),
        ({"gathers": 3, "budget": {"latency": 0.9}}, ConfigError, "gathers: 3 is not allowed"),
        ({"budget": {"latency": 0.9}, "strategy": "max_cost"}, ConfigError,
         "strategy 'max_cost': knows budgets of params and macs"),
        ({"config_list": [{"op_names": ["0", "8"]}]}, ConfigError,
         "config_list: selects no layer that can be grouped .0: its 3 input channels"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(change, error, said):
    arguments = {"model": small_net(), "dummy_input": EXAMPLE, "config_list": CONVS,
                 "budget": {"macs": 0.5}, **change}  # fmt: skip
    with pytest.raises(error, match=said) as caught:
        search_groups(**arguments)
    assert "\n" not in str(caught.value)


def test_what_is_said_to_be_reachable_is():
    model = small_net()
    with pytest.raises(BudgetError) as caught:
        search_groups(model, EXAMPLE, CONVS, {"params": 0.01})
    least = int(str(caught.value).rsplit("(", 1)[1].rstrip(")").replace(",", ""))
    assert search_groups(model, EXAMPLE, CONVS, {"params": least}).params == least


def test_saved_counts_are_read(tmp_path):
    model = small_net()
    found = search_groups(model, EXAMPLE, CONVS, {"macs": 0.4})
    assert read_group_config(found.save(tmp_path / "groups.json"), model) == dict(found)
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["layer"] == "2"
    assert found.table("net").row_count == 3


def test_progress_is_told():
    seen = []
    search_groups(small_net(), EXAMPLE, CONVS, {"macs": 0.5}, progress=lambda *n: seen.append(n))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (12, 12)


def wide_net():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(128, 128, 3, padding=1) for _ in range(3)))


WIDE = torch.zeros(1, 128, 16, 16)


@pytest.mark.slow
def test_a_budget_of_latency_is_measured_to_hold():
    """On a busy machine nothing may measure fast enough; then that is said."""
    try:
        found = search_groups(wide_net(), WIDE, CONVS, {"latency": 0.9, "params": 0.9})
    except BudgetError as error:
        assert "on this machine" in str(error)
        return
    assert found.latency <= 0.9
    assert found.params <= 0.9 * found.dense.params
    assert all(t.milliseconds[0] == t.dense_milliseconds > 0 for t in found.tables)


@pytest.mark.slow
def test_a_budget_of_latency_by_a_clock_that_goes_by_macs(monkeypatch):
    def measure(timer, name, counts, *, gathers=0):
        return [LayerLatency(name, c, dense_ms=1.0, grouped_ms=1 / c) for c in counts]

    def measured(model, example, tables, solution, gathers, timer):
        groups = [t.choices[o] for t, o in zip(tables.layers, solution.chosen, strict=True)]
        return 0.1 + 0.9 * sum(1 / g for g in groups) / len(groups)

    monkeypatch.setattr(LayerTimer, "measure", measure)
    monkeypatch.setattr(search_budget, "_measured", measured)
    found = search_groups(wide_net(), WIDE, CONVS, {"latency": 0.6, "params": 0.9})
    assert 0.5 < found.latency <= 0.6
    assert found.params <= 0.9 * found.dense.params
    with pytest.raises(BudgetError, match=r"latency of 0.001 of dense was not reached.* 0\.1\d\d"):
        search_groups(wide_net(), WIDE, CONVS, {"latency": 0.001})


def test_the_gate_tells_slower_layers_by_their_figures():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1))
    groups = {"module.0": 4, "1": 8, "2": 1}
    found = slower_than_dense(model, torch.zeros(1, 64, 16, 16), groups, gathers=2, min_seconds=0)
    assert [(row.name, row.groups) for row in found.rows] == [("0", 4), ("1", 8)]
    assert all(row.dense_ms > 0 and row.grouped_ms > 0 for row in found.rows)
    as_dense = [row.name for row in found.rows if row.form.endswith("dense") or row.ratio > 1]
    assert list(found.slower) == as_dense
    rows = tuple(replace(row, form="plain, 4 groups") for row in found.rows)
    found = type(found)(rows, limit=1.0)
    assert list(found.slower) == [row.name for row in rows if row.ratio > 1]
    dense = type(found)((replace(rows[0], form="packed, dense"), rows[1]), limit=1e9)
    assert list(dense.slower) == ["0"]  # groups that are computed as a dense layer gain nothing
    every = type(found)(found.rows, limit=0.0)
    assert every.passed({"0": 4, "1": 8, "2": 1}) == {"0": 1, "1": 1, "2": 1}
    none = type(found)(found.rows, limit=1e9)
    assert none.passed({"0": 4, "1": 8}) == {"0": 4, "1": 8}
    assert none.table().row_count == 2
    assert set(json.loads(json.dumps(every.to_dict()))["slower"]) == {"0", "1"}


def test_equal_layers_are_timed_once_and_calls_add_up():
    model, example = Shared(), torch.zeros(1, 8, 8, 8)
    timer = LayerTimer(model, example, min_seconds=0)
    assert (timer.calls("twice"), timer.calls("again"), timer.calls("idle")) == (2, 1, 0)
    first = timer.measure("one", (2, 4))
    second = timer.measure("named", (4, 2))
    assert [row.grouped_ms for row in first] == [row.grouped_ms for row in second][::-1]
    assert slower_than_dense(model, example, {"idle": 2}, min_seconds=0).rows == ()


@pytest.mark.parametrize("gathers", [0, 1, 2])
def test_a_grouped_copy_computes_in_groups(gathers):
    model = nn.Sequential(nn.Conv1d(8, 16, 3, dilation=2, padding="same", padding_mode="circular"))
    model.append(model[0].__class__(16, 8, 3, bias=False)).eval()
    copied = grouped_copy(model, {"0": 4, "1": 2}, gathers=gathers)
    x = torch.randn(2, 8, 9)
    assert copied(x).shape == model(x).shape
    assert copied(x[0]).shape == model(x[0]).shape
    grouped = [m for m in copied.modules() if isinstance(m, nn.Conv1d)]
    assert [m.groups for m in grouped] == [4, 2]
    assert (grouped[0].dilation, grouped[0].padding_mode) == ((2,), "circular")
    assert not any(m.training for m in copied.modules())
    assert sum("index" in name for name, _ in copied.named_buffers()) == 2 * gathers
