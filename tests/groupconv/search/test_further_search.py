"""A search splits convolutions that have groups already further: proven against enumeration."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from nni_gconv import search_groups
from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import check_groups, errors_of_groups, read_group_config
from nni_gconv.groupconv.partition import partition
from nni_gconv.groupconv.search import (
    ChoiceRules,
    LayerTimer,
    cost_tables,
    grouped_copy,
    slower_than_dense,
)
from nni_gconv.groupconv.search.timing import LatencyGate, LayerLatency
from nni_gconv.profiling import count
from nni_gconv.training.zoo.grouped import with_groups

CONVS = [{"op_types": ["Conv2d"]}]
X = torch.zeros(1, 4, 6, 6)


def net(seed=0):
    """A narrow bottleneck of ResNeXt, and a depthwise convolution."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 16, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 2),
    )  # fmt: skip


def shares(model):
    """Share of its norm that each layer keeps with each count, every group split by itself."""
    found = {}
    for name, counts in (("0", (1, 2, 4)), ("1", (2, 4, 8)), ("3", (1, 2, 4, 8))):
        layer = model.get_submodule(name)
        blocks = np.split(layer.weight.detach().flatten(2).norm(dim=2).numpy(), layer.groups)
        total = sum(block.sum() for block in blocks)
        for g in counts:
            kept = (partition(b, g // layer.groups, restarts=0).retained for b in blocks)
            found[name, g] = sum(kept) / total
    return found


@pytest.mark.parametrize("strategy", ["exact", "max_cost"])
@pytest.mark.parametrize("budget", [{"params": 0.6}, {"params": 0.75, "macs": 0.5}])
def test_the_best_choice_of_all_is_found_within_the_budget(budget, strategy):
    model = net()
    found, dense = search_groups(model, X, CONVS, budget, strategy=strategy), count(model, X)
    kept, best = shares(model), 0.0
    assert {(t.name, g) for t in found.tables for g in t.choices} == set(kept)
    for counts in itertools.product((1, 2, 4), (2, 4, 8), (1, 2, 4, 8)):
        groups = dict(zip(("0", "1", "3"), counts, strict=True))
        costs = count(grouped_copy(model, groups), X)._asdict()
        if all(costs[m] <= v * getattr(dense, m) for m, v in budget.items()):
            best = max(best, sum(kept[pair] for pair in groups.items()) / 3)
    own = sum(kept[pair] for pair in found.items()) / 3
    assert found.retained == pytest.approx(own)
    assert found.retained == pytest.approx(best) if strategy == "exact" else own <= best + 1e-9
    assert count(grouped_copy(model, found), X) == (found.params, found.macs)
    assert all(getattr(found, m) <= v * getattr(dense, m) for m, v in budget.items())
    assert found.dense == dense
    assert found.skipped == {"4": "it is depthwise already"}


def test_what_was_found_is_told_saved_and_read(tmp_path):
    model = net()
    found = search_groups(model, X, [{"op_names": ["1", "4"]}], {"macs": 0.8})
    assert dict(found) == {"1": 4}
    row = json.loads(json.dumps(found.to_dict()))["layers"][0]
    assert (row["had"], row["groups"], row["filters"], row["channels"]) == (2, 4, 16, 16)
    assert "2 -> 4" in str(found.table())
    path = found.save(tmp_path / "groups.json")
    assert json.loads(path.read_text()) == {"module.1": {"G": 4, "F": 16, "C": 16}}
    assert read_group_config(path, model) == {"1": 4}


def test_a_count_that_a_layer_has_leaves_it():
    model = net()
    assert check_groups({"1": 2, "4": 8}, model) == {"1": 2, "4": 8}
    same = grouped_copy(model, {"1": 2, "4": 8}, gathers=2)
    assert [str(m) for m in same] == [str(m) for m in model]
    found = search_groups(model, X, CONVS, {"params": 1.0})
    assert dict(found) == {"0": 1, "1": 2, "3": 1}
    assert (found.params, found.macs) == found.dense
    assert "2 -> 2" in str(found.table())


def test_requests_and_rules_are_of_all_groups():
    entries = [{"op_names": ["1"], "max_group_size": 4}]
    assert cost_tables(net(), X, entries).layers[0].choices == (4, 8)
    assert cost_tables(net(), X, CONVS, ChoiceRules(max_groups=4)).layers[1].choices == (2, 4)
    assert cost_tables(net(), X, CONVS, ChoiceRules(min_factor=4)).layers[1].choices == (2, 4)
    assert cost_tables(net(), X, CONVS, ChoiceRules(depthwise=True)).layers[1].choices[-1] == 16
    for wanted, said in ((3, "of which 3 are no multiple"), (32, "32 groups do not divide")):
        with pytest.raises(ConfigError, match=said):
            cost_tables(net(), X, [{"op_names": ["1"], "num_groups": wanted}])
    with pytest.raises(ConfigError, match=r"it has 2 groups already \(GroupConvPruner can"):
        cost_tables(net(), X, [{"op_names": ["1"]}], ChoiceRules(further=False))


def test_errors_are_those_of_each_group():
    model, generator = net(), np.random.default_rng(0)
    roots = generator.normal(size=(2, 100, 72))
    moments = np.einsum("gnc,gnd->gcd", roots, roots) / 100
    found = search_groups(
        model, X, [{"op_names": ["1"], "num_groups": 4}], {"macs": 0.9}, score="error",
        covariances={"1": moments},
    )  # fmt: skip
    weight = model[1].weight.detach().double().numpy()
    energy = sum(
        np.einsum("fi,ij,fj->", block.reshape(8, -1), own, block.reshape(8, -1))
        for block, own in zip(np.split(weight, 2), moments, strict=True)
    )
    assert found.tables[0].total == pytest.approx(energy)
    assert 0.4 < found.retained < 1
    for wrong in (moments[0], moments[:, :36, :36]):
        with pytest.raises(ConfigError, match="covariance: shape"):
            errors_of_groups(weight, wrong, 2)


def test_a_layer_is_timed_against_itself(monkeypatch):
    model, raced = net(), []
    timer = LayerTimer(model, X, min_seconds=0)
    race = timer._timer.race
    monkeypatch.setattr(
        timer._timer, "race", lambda units, shape: raced.append(units) or race(units, shape)
    )
    rows = timer.measure("1", (2, 4), gathers=1)
    assert [getattr(unit, "groups", None) for unit in raced[0]] == [2, None]  # that has a gather
    assert [(row.had, row.groups) for row in rows] == [(2, 2), (2, 4)]
    assert rows[0].ratio == 1
    assert [
        row.name for row in slower_than_dense(model, X, {"1": 4, "4": 8}, min_seconds=0).rows
    ] == ["1"]


def test_what_is_slower_keeps_its_groups():
    rows = (LayerLatency("1", 4, 1.0, 2.0, "plain, 4 groups", 2), LayerLatency("3", 2, 1.0, 0.5))
    gate = LatencyGate(rows, 1.0)
    assert gate.passed({"1": 4, "3": 2}) == {"1": 2, "3": 2}
    assert "left at 2 groups" in str(gate.table())


def test_a_network_is_made_with_more_groups_than_it_had():
    model = net()
    weight = model[1].weight.detach().clone()
    with_groups(model, {"1": 4})
    assert model[1].groups == 4
    assert torch.allclose(model[1].weight[4:8], weight[4:8, 4:] * 2**0.5)
    with pytest.raises(ConfigError, match="group_form: grouped"):
        with_groups(net(), {"1": 4}, "separable")
