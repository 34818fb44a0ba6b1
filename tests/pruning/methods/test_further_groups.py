"""Convolutions that have groups already are split further where that divides."""

import copy

import numpy as np
import pytest
import torch
from speedup_nets import X, conv, middle
from speedup_tools import assert_same_outputs, masked, outputs_of

from nni_gconv import GroupConvPruner, ModelSpeedup, ShufflePruner, load_compact, save_compact
from nni_gconv.errors import ConfigError
from nni_gconv.export import export_model
from nni_gconv.groupconv.partition import partition


def net():
    grouped = conv(8, 8, groups=2)
    return middle(lambda s, x: s.b(s.a(x).relu()), a=grouped, b=conv(8, 8))


def split(model, config_list, **options):
    pruner = GroupConvPruner(model, config_list, dummy_input=X, **options)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return pruner, masks


@pytest.mark.parametrize("method", ["assignment", "grps", "sort", "same", "shuffle", "random"])
def test_every_group_is_split(method):
    model = net()
    config = [{"op_names": ["a"], "num_groups": 4}, {"op_names": ["b"], "num_groups": 2}]
    pruner, masks = split(model, config, method=method)
    assert pruner.groups == {"a": 4, "b": 2}
    assert float(masks["a"]["weight"].mean()) == 0.5
    expected = outputs_of(masked(model, masks), X)
    ModelSpeedup(model, X, masks).speedup_model()
    assert [m.groups for m in model.modules() if hasattr(m, "groups")] == [1, 4, 2, 1]
    assert_same_outputs(expected, outputs_of(model, X))


def test_each_group_keeps_what_its_own_best_partition_does():
    model = net()
    pruner, _ = split(model, [{"op_names": ["a"], "num_groups": 4}])
    norms = model.a.weight.detach().flatten(2).norm(dim=2).numpy()
    best = sum(partition(block, 2).retained for block in np.split(norms, 2))
    assert pruner.partitions["a"].retained == pytest.approx(best)
    assert pruner.partitions["a"].fraction > 0.5
    whole, part = pruner.kernel_norms()["a"]
    assert (whole * part.mask()).sum() == pytest.approx(best)
    assert "4" in str(pruner.table())


def test_what_does_not_divide_stays_with_the_reason():
    config = [{"op_names": ["a"], "num_groups": 2}, {"op_names": ["b"], "num_groups": 2}]
    pruner, _ = split(net(), config)
    assert pruner.skipped["a"].startswith("it has 2 groups already, which 2 groups do not divide")
    masks = {"a": {"weight": torch.ones(8, 4, 3, 3), "bias": torch.ones(8)}}
    for mask in masks["a"].values():
        mask[[0, 1, 5, 6]] = 0
    config[0]["num_groups"] = 4
    pruner, _ = split(net(), config, masks=masks)
    assert "cut them with ModelSpeedup" in pruner.skipped["a"]


def test_what_searches_counts_says_who_splits_further():
    said = r"it has 2 groups already \(GroupConvPruner's num_groups can split them\)"
    with pytest.raises(ConfigError, match=said):
        GroupConvPruner(net(), [{"op_names": ["a"]}], dummy_input=X, budget={"params": 0.9})
    with pytest.raises(ConfigError, match=said):
        ShufflePruner(net(), [{"op_names": ["a"], "num_groups": 4}], dummy_input=X)


def test_groups_rise_on_a_ramp():
    config = [{"op_names": ["a"], "num_groups": 8}]
    pruner = GroupConvPruner(net(), config, dummy_input=X)
    assert pruner._ratios == {"a": 0.75}
    pruner.unwrap_model()


def cut():
    model = net()
    _, masks = split(model, [{"op_names": ["a"], "num_groups": 4}])
    ModelSpeedup(model, X, masks).speedup_model()
    return model


def test_it_saves_reloads_and_trains(tmp_path):
    small = cut()
    again = load_compact(save_compact(small, tmp_path / "small.safetensors"), net)
    assert_same_outputs(outputs_of(small, X), outputs_of(again, X), 0)
    before = copy.deepcopy(small.state_dict())
    small(X).square().mean().backward()
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert any(not torch.equal(before[k], v) for k, v in small.state_dict().items())


@pytest.mark.slow
def test_it_exports(tmp_path):
    export_model(cut().float(), X.float(), tmp_path / "small.onnx")  # compares
