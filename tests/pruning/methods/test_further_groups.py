"""Convolutions that have groups already are split further where that divides."""

import copy
import itertools

import numpy as np
import pytest
import torch
from speedup_nets import X, conv, middle
from speedup_tools import assert_same_outputs, masked, outputs_of
from torch import nn

from nni_gconv import GroupConvPruner, ModelSpeedup, ShufflePruner, load_compact, save_compact
from nni_gconv.errors import ConfigError
from nni_gconv.export import export_model
from nni_gconv.groupconv import write_group_config
from nni_gconv.groupconv.partition import partition
from nni_gconv.profiling import count


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
    assert pruner.skipped["a"] == "it has 2 groups already"
    config[0] = {"op_names": ["a"], "max_group_size": 4}
    pruner, _ = split(net(), config)
    assert pruner.skipped["a"] == "its 2 groups are no wider than 4 channels"

    def wider(s, x):
        return s.b(s.a(s.up(x)))

    wide = middle(wider, up=conv(8, 12), a=conv(12, 12, groups=2), b=conv(12, 8))
    config[0] = {"op_names": ["a"], "num_groups": 3}
    pruner, _ = split(wide, config)
    assert pruner.skipped["a"] == "it has 2 groups already, of which 3 are no multiple"
    config[0] = {"op_names": ["a"], "max_group_size": 4}
    pruner, _ = split(wide, config)
    assert pruner.skipped["a"].endswith("12 filters and 12 input channels in 2 groups")


def silenced(rows):
    masks = {"a": {"weight": torch.ones(8, 4, 3, 3), "bias": torch.ones(8)}}
    for mask in masks["a"].values():
        mask[rows] = 0
    return masks


def test_by_error_what_masks_leave_is_searched():
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    model, masks = net(), silenced([0, 1, 5, 6])
    pruner, both = split(
        model, [{"op_names": ["a"]}], masks=masks, budget={"params": 0.6}, criterion="error",
        calibration=images,
    )  # fmt: skip
    assert pruner.groups == {"a": 4}
    assert 0 < pruner.partitions["a"].fraction < 1
    expected = outputs_of(masked(model, both), X)
    ModelSpeedup(model, X, both).speedup_model()
    assert (model.a.groups, model.a.out_channels) == (4, 4)
    assert_same_outputs(expected, outputs_of(model, X))


def test_groups_stay_equally_wide_and_their_count_has_to_divide_that():
    config = [{"op_names": ["a"], "num_groups": 4}]
    with pytest.raises(ConfigError, match="4 groups do not divide 6 filters"):
        GroupConvPruner(net(), config, dummy_input=X, masks=silenced([0, 1, 5]))


def test_an_idle_layer_knows_its_groups():
    model = middle(lambda s, x: s.b(x), a=conv(8, 8, groups=2), b=conv(8, 8))
    pruner, masks = split(model, [{"op_names": ["a", "b"], "num_groups": 4}])
    assert pruner.groups == {"a": 4, "b": 4}
    assert (masks["a"]["weight"].mean(), masks["b"]["weight"].mean()) == (0.5, 0.25)


@pytest.mark.parametrize("asked", [{"num_groups": 4}, {"max_group_size": 2}, {"budget": 0.6}])
def test_groups_are_split_of_what_masks_leave(asked):
    model, masks = net(), silenced([0, 1, 5, 6])
    options = {"budget": {"params": asked.pop("budget")}} if "budget" in asked else {}
    pruner, both = split(model, [{"op_names": ["a"], **asked}], masks=masks, **options)
    assert pruner.groups == {"a": 4}
    assert pruner.partitions["a"].mask().shape == (4, 8)
    norms = model.a.weight.detach().flatten(2).norm(dim=2).numpy()
    best = sum(partition(norms[rows], 2).retained for rows in ([2, 3], [4, 7]))
    assert pruner.partitions["a"].retained == pytest.approx(best)
    expected = outputs_of(masked(model, both), X)
    ModelSpeedup(model, X, both).speedup_model()
    assert (model.a.groups, model.a.out_channels) == (4, 4)
    assert_same_outputs(expected, outputs_of(model, X))


def test_what_does_not_split_further_says_who_does():
    said = r"it has 2 groups already \(GroupConvPruner can split them\)"
    with pytest.raises(ConfigError, match=said):
        ShufflePruner(net(), [{"op_names": ["a"], "num_groups": 4}], dummy_input=X)


def test_a_budget_splits_groups_and_holds():
    model = net()
    dense = count(model, X)
    pruner, masks = split(model, [{"op_types": ["Conv2d"]}], budget={"params": 0.6, "macs": 0.6})
    assert pruner.groups["a"] > 2
    expected = outputs_of(masked(model, masks), X)
    ModelSpeedup(model, X, masks).speedup_model()
    assert model.a.groups == pruner.groups["a"]
    assert count(model, X).params <= 0.6 * dense.params
    assert count(model, X).macs <= 0.6 * dense.macs
    assert_same_outputs(expected, outputs_of(model, X))


def test_by_error_each_group_is_split_for_what_it_reads():
    model = net()
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    options = {"criterion": "error", "calibration": images}
    pruner, masks = split(model, [{"op_names": ["a"], "num_groups": 4}], **options)
    seen = []
    hook = model.a.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    patches = nn.functional.unfold(seen[0].double(), 3, padding=1).movedim(1, 2).flatten(0, 1)
    kept = 0.0
    for n in range(2):  # all splits of 4 filters and 4 channels in two, by least squares
        weight = model.a.weight.detach().double()[4 * n : 4 * n + 4].flatten(1)
        read = patches[:, 36 * n : 36 * n + 36]
        moments = read.T.cov(correction=0)
        ridged = moments + 1e-3 * moments.diagonal().mean() * torch.eye(36)
        best = 0.0
        for rows, columns in itertools.product(itertools.combinations(range(4), 2), repeat=2):
            said = 0.0
            for mine, own in ((rows, columns), (rest(rows), rest(columns))):
                taps = [9 * c + t for c in own for t in range(9)]
                cross = (moments @ weight[list(mine)].T)[taps]
                said += float((cross * torch.linalg.solve(ridged[taps][:, taps], cross)).sum())
            best = max(best, said)
        kept += best
    assert pruner.partitions["a"].retained == pytest.approx(kept, rel=0.02)
    assert float(masks["a"]["weight"].mean()) == 0.5


def rest(some):
    return [n for n in range(4) if n not in some]


def test_a_file_of_counts_says_what_is_split_further(tmp_path):
    path = write_group_config(tmp_path / "groups.json", {"a": 4, "b": 2}, net())
    pruner, _ = split(net(), [{"op_types": ["Conv2d"]}], group_config=path)
    assert pruner.groups == {"a": 4, "b": 2}
    pruner, _ = split(net(), [{"op_types": ["Conv2d"]}], group_config={"a": 2, "b": 2})
    assert pruner.groups == {"b": 2}
    with pytest.raises(ConfigError, match="every layer stays"):
        split(net(), [{"op_types": ["Conv2d"]}], group_config={"a": 2})


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
