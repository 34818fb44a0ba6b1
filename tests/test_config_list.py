"""NNI's config_list, read strictly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.config_list import nni_entries, resolve
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.methods.fpgm import FPGMPruner


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc1 = nn.Linear(12, 8)
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.conv3(self.conv2(x).relu()).relu().mean((2, 3))
        return self.fc2(self.fc1(x).relu())


CONVS = {"op_types": ["Conv2d"], "sparse_ratio": 0.5}


def named(**settings):
    return [{"op_names": ["conv1"], **settings}]


WRONG = {
    "unknown key": (
        [{**CONVS, "sparse_ration": 0.5}],
        r"config_list\[0\]: unknown key 'sparse_ration'; did you mean 'sparse_ratio'\?",
    ),
    "second entry": (
        [CONVS, {"op_nams": ["conv1"]}],
        r"config_list\[1\]: unknown key 'op_nams'; did you mean 'op_names'\?",
    ),
    "no list": (CONVS, r"config_list: expected a list of entries, got dict"),
    "a word": ("Conv2d", r"config_list: expected a list of entries, got str"),
    "none": (None, r"config_list: expected a list of entries, got NoneType"),
    "empty list": ([], r"config_list: the list is empty"),
    "entry no mapping": (["conv1"], r"config_list\[0\]: expected a mapping, got 'conv1'"),
    "no pattern": (
        [{"sparse_ratio": 0.5}],
        r"config_list\[0\]: one of op_types, op_names, op_names_re is needed",
    ),
    "pattern no list": (
        [{"op_types": "Conv2d", "sparse_ratio": 0.5}],
        r"config_list\[0\].op_types: expected a list of strings, got 'Conv2d'",
    ),
    "pattern of numbers": (
        [{"op_names": [1]}],
        r"config_list\[0\].op_names: expected a list of strings, got \[1\]",
    ),
    "name": (
        [{"op_names": ["conv1", "conv22"]}],
        r"config_list\[0\].op_names: 'conv22' matches no module of the model; nearest: conv2",
    ),
    "module. prefix": (
        [{"op_names": ["module.conv3"]}],
        r"op_names: 'module.conv3' matches no module of the model; nearest: conv3",
    ),
    "type": (
        [{"op_types": ["Conv2D"]}],
        r"config_list\[0\].op_types: 'Conv2D' matches no module type of the model; nearest: Conv2d",
    ),
    "regex": (
        [{"op_names_re": ["layer.*"]}],
        r"config_list\[0\].op_names_re: 'layer.\*' matches no module of the model",
    ),
    "bad regex": (
        [{"op_names_re": ["conv("]}],
        r"op_names_re: 'conv\(' is not a regular expression \(missing \)",
    ),
    "excluded name": (
        [{**CONVS, "exclude_op_names": ["cnv1"]}],
        r"config_list\[0\].exclude_op_names: 'cnv1' matches no module .* nearest: conv1",
    ),
    "excluded regex": (
        [{**CONVS, "exclude_op_names_re": ["^x"]}],
        r"config_list\[0\].exclude_op_names_re: '\^x' matches no module",
    ),
    "excluded type": (
        [{**CONVS, "exclude_op_types": ["Linar"]}],
        r"exclude_op_types: 'Linar' matches no module type of the model; nearest: Linear",
    ),
    "empty selection": (
        [{**CONVS, "exclude_op_names_re": ["conv"]}],
        r"config_list\[0\]: its patterns together select no module",
    ),
    "batch norm": (
        [{"op_names": ["bn1"], "sparse_ratio": 0.5}],
        r"config_list\[0\]: bn1 is a BatchNorm2d; channels can be pruned in Conv1d/2d/3d",
    ),
    "ratio too large": (
        named(sparse_ratio=1.2),
        r"config_list\[0\].sparse_ratio: 1.2 is not allowed \(a number from 0 to 1\)",
    ),
    "ratio negative": (named(sparse_ratio=-0.1), r"sparse_ratio: -0.1 is not allowed"),
    "ratio a word": (named(sparse_ratio="half"), r"sparse_ratio: 'half' is not allowed"),
    "ratio a flag": (named(sparse_ratio=True), r"sparse_ratio: True is not allowed"),
    "ratio nan": (named(sparse_ratio=float("nan")), r"sparse_ratio: nan is not allowed"),
    "threshold": (
        named(sparse_threshold=-1),
        r"config_list\[0\].sparse_threshold: -1 is not allowed \(a number from 0\)",
    ),
    "both": (
        named(sparse_ratio=0.5, sparse_threshold=0.1),
        r"config_list\[0\]: sparse_ratio and sparse_threshold exclude each other",
    ),
    "bounds crossed": (
        named(sparse_ratio=0.5, min_sparse_ratio=0.6, max_sparse_ratio=0.4),
        r"config_list\[0\]: min_sparse_ratio 0.6 is above max_sparse_ratio 0.4",
    ),
    "min_channels": (
        named(sparse_ratio=0.5, min_channels=0),
        r"config_list\[0\].min_channels: 0 is not allowed \(a whole number from 1\)",
    ),
    "round_to": (named(sparse_ratio=0.5, round_to=2.5), r"round_to: 2.5 is not allowed"),
    "block": (
        named(sparse_ratio=0.5, internal_metric_block=-2),
        r"internal_metric_block: -2 is not allowed",
    ),
    "granularity": (
        named(sparse_ratio=0.5, granularity="per_channel"),
        r"granularity: unknown granularity 'per_channel'.* \(allowed: default, out_channel\)",
    ),
    "granularity list": (
        named(sparse_ratio=0.5, granularity=[1, 1]),
        r"config_list\[0\].granularity: unknown granularity \[1, 1\]",
    ),
    "apply_method": (
        named(sparse_ratio=0.5, apply_method="add"),
        r"apply_method: unknown apply_method 'add' \(allowed: mul, bypass\)",
    ),
    "group id": (
        named(sparse_ratio=0.5, global_group_id=[1]),
        r"global_group_id: \[1\] is not allowed \(a whole number or a text\)",
    ),
    "group of two ratios": (
        [
            {"op_names": ["conv1"], "sparse_ratio": 0.5, "global_group_id": 7},
            {"op_names": ["conv2"], "sparse_ratio": 0.3, "global_group_id": 7},
        ],
        r"global_group_id 7: conv2 has sparse_ratio 0.3, conv1 has 0.5",
    ),
    "targets without weight": (
        named(sparse_ratio=0.5, target_names=["bias"]),
        r"config_list\[0\].target_names: \['bias'\] lacks 'weight'",
    ),
    "targets no list": (
        named(sparse_ratio=0.5, target_names=5),
        r"config_list\[0\].target_names: expected a list of strings, got 5",
    ),
    "target of the wrong kind": (
        named(sparse_ratio=0.5, target_names=["weight", "_output_"]),
        r"config_list\[0\].target_names: unknown target '_output_'",
    ),
    "target_settings no mapping": (
        named(target_settings=[0.5]),
        r"config_list\[0\].target_settings: expected a mapping, got \[0.5\]",
    ),
    "target_settings of one no mapping": (
        named(target_settings={"weight": 0.5}),
        r"config_list\[0\].target_settings.weight: expected a mapping, got 0.5",
    ),
    "target_settings key": (
        named(target_settings={"weight": {"sparse_rate": 0.5}}),
        r"target_settings.weight: unknown key 'sparse_rate'; did you mean 'sparse_ratio'",
    ),
    "target_settings value": (
        named(target_settings={"weight": {"sparse_ratio": 2}}),
        r"config_list\[0\].sparse_ratio: 2 is not allowed",
    ),
    "align": (
        named(sparse_ratio=0.5, align="conv2"),
        r"config_list\[0\].align: expected \{module_name, target_name, dims: \[0\]\}, got 'conv2'",
    ),
    "align of columns": (
        named(sparse_ratio=0.5, align={"module_name": "conv2", "dims": [1]}),
        r"align: expected \{module_name, target_name, dims: \[0\]\}",
    ),
    "align on nothing": (
        named(sparse_ratio=0.5, align={"module_name": "conv9", "dims": [0]}),
        r"conv1: align: unknown module 'conv9'; did you mean 'conv",
    ),
    "align of other width": (
        named(sparse_ratio=0.5, align={"module_name": "conv3", "dims": [0]}),
        r"align ties conv3 with 12 channels to conv1 with 8",
    ),
    "dependency of other width": (
        [{"op_names": ["conv2", "conv3"], "sparse_ratio": 0.5, "dependency_group_id": "a"}],
        r"dependency_group_id 'a' ties conv2 with 8 channels to conv3 with 12",
    ),
    "block does not divide": (
        named(sparse_ratio=0.5, internal_metric_block=3),
        r"internal_metric_block: 3 does not divide the 8 channels of conv1",
    ),
    "no goal": (
        [{"op_types": ["Conv2d"]}],
        r"conv1 has neither sparse_ratio nor sparse_threshold, and there is no budget",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_that_names_it(case):
    config_list, said = WRONG[case]
    with pytest.raises(ConfigError, match=said) as caught:
        FPGMPruner(Net(), config_list, dummy_input=torch.zeros(1, 3, 8, 8)).compress()
    assert "\n" not in str(caught.value)


def selected(*config_list):
    return list(resolve(Net(), list(config_list))[0])


def test_names_types_patterns_and_excludes_select_as_in_nni():
    assert selected(CONVS) == ["conv1", "conv2", "conv3"]
    assert selected({"op_types": ["Conv2d", "Linear"], "exclude_op_types": ["Linear"]}) == [
        "conv1", "conv2", "conv3",
    ]  # fmt: skip
    assert selected({"op_names_re": ["conv[12]"]}) == ["conv1", "conv2"]
    assert selected({"op_names": ["fc1"], "op_names_re": ["conv[12]"], "op_types": ["Conv2d"]}) == [
        "conv1", "conv2",
    ]  # fmt: skip
    assert selected({**CONVS, "exclude_op_names": ["conv2"]}) == ["conv1", "conv3"]
    # As in NNI a pattern is matched at the beginning: there is no need to close it.
    assert selected({"op_names_re": ["fc"]}) == ["fc1", "fc2"]


def test_a_later_entry_overrides_and_the_rest_stays():
    layers, _ = resolve(
        Net(),
        [
            {**CONVS, "max_sparse_ratio": 0.8, "min_channels": 3},
            {"op_names": ["conv2"], "sparse_ratio": 0.25},
            {"op_names": ["conv3"], "sparse_threshold": 0.1},
        ],
    )
    assert [layers[n].sparse_ratio for n in ("conv1", "conv2", "conv3")] == [0.5, 0.25, None]
    assert layers["conv3"].sparse_threshold == 0.1
    assert {layer.max_sparse_ratio for layer in layers.values()} == {0.8}
    assert {layer.min_channels for layer in layers.values()} == {3}


def test_what_one_entry_excludes_and_another_selects_is_selected():
    first = {**CONVS, "exclude_op_names": ["conv1", "conv2"]}
    layers, excluded = resolve(Net(), [first, {"op_names": ["conv2"], "sparse_ratio": 0.1}])
    assert list(layers) == ["conv2", "conv3"]
    assert excluded == {"conv1"}


def test_a_whole_number_is_a_ratio_and_keys_may_be_null():
    layers, _ = resolve(Net(), named(sparse_ratio=1, min_sparse_ratio=None, granularity="default"))
    assert layers["conv1"].sparse_ratio == 1.0
    assert layers["conv1"].min_sparse_ratio == 0.0


def test_target_settings_of_the_weight_count():
    entry = {"op_names": ["conv1"], "target_names": ["weight", "bias"]}
    layers, _ = resolve(Net(), [{**entry, "target_settings": {"weight": {"sparse_ratio": 0.25}}}])
    assert layers["conv1"].sparse_ratio == 0.25


def test_nni_accepts_what_is_handed_on_to_it():
    from nni.compression.base.config import default_config_schema

    config = [
        {
            "op_types": ["Conv2d"], "sparse_ratio": 1, "max_sparse_ratio": 0.5,
            "min_sparse_ratio": 0.1, "global_group_id": 3, "internal_metric_block": 2,
            "min_channels": 2, "round_to": 2,
        }
    ]  # fmt: skip
    for entry in nni_entries(resolve(Net(), config)[0]):
        default_config_schema("pruning").validate(entry)


def kept(config_list, **options):
    """Channels of each layer that the pruner keeps."""
    torch.manual_seed(3)
    pruner = FPGMPruner(Net(), config_list, dummy_input=torch.zeros(1, 3, 8, 8), **options)
    masks = pruner.compress()[1]
    return {
        name: targets["weight"].flatten(1).any(1).nonzero().flatten().tolist()
        for name, targets in masks.items()
        if targets["weight"].dim() > 1
    }


def test_dependency_groups_and_align_lose_the_same_channels():
    free = kept([CONVS])
    assert free["conv1"] != free["conv2"]
    tied = kept([{**CONVS, "op_names": ["conv1", "conv2"], "dependency_group_id": 1}])
    assert tied["conv1"] == tied["conv2"]
    assert len(tied["conv1"]) == 4
    align = {"module_name": "conv1", "target_name": "weight", "dims": [0]}
    aligned = kept([CONVS, {"op_names": ["conv2"], "align": align}])
    assert aligned["conv1"] == aligned["conv2"]


def test_blocks_lose_equally_many():
    blocks = kept(named(sparse_ratio=0.5, internal_metric_block=4))["conv1"]
    assert [c // 2 for c in blocks] == [0, 1, 2, 3]
    assert [c // 2 for c in kept(named(sparse_ratio=0.5))["conv1"]] != [0, 1, 2, 3]


def test_min_channels_and_round_to():
    assert len(kept(named(sparse_ratio=0.9, min_channels=3))["conv1"]) == 3
    assert len(kept(named(sparse_ratio=0.4, round_to=4))["conv1"]) == 4
    assert len(kept(named(sparse_ratio=1))["conv1"]) == 1


def test_the_default_and_the_out_channel_granularity_are_one():
    assert kept(named(sparse_ratio=0.5, granularity="out_channel")) == kept(named(sparse_ratio=0.5))


class Twice(nn.Module):
    """A layer under two names, as nnU-Net registers its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.all = nn.Sequential(self.conv, self.bn, nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.all(x))


@pytest.mark.parametrize(
    "entry",
    [
        {"op_types": ["Conv2d"], "exclude_op_names": ["head"]},
        {"op_names": ["conv"]},
        {"op_names": ["all.0"]},
        {"op_names_re": [r"all\..*"], "op_types": ["Conv2d"]},
    ],
)
def test_a_layer_under_two_names_is_selected_once(entry):
    layers, _ = resolve(Twice(), [{**entry, "sparse_ratio": 0.5}])
    assert list(layers) == ["conv"]
    net = Twice()
    pruner = FPGMPruner(net, [{**entry, "sparse_ratio": 0.5}], dummy_input=torch.zeros(1, 3, 8, 8))
    _, masks = pruner.compress()
    pruner.unwrap_model()
    small = ModelSpeedup(net, torch.zeros(1, 3, 8, 8), masks).speedup_model()
    assert (small.conv.out_channels, small.bn.num_features, small.head.in_channels) == (4, 4, 4)
    assert small.all[0] is small.conv


def test_an_exclusion_counts_under_either_name():
    entry = {"op_types": ["Conv2d"], "exclude_op_names": ["all.0"], "sparse_ratio": 0.5}
    layers, excluded = resolve(Twice(), [entry])
    assert list(layers) == ["head"]
    assert excluded == {"conv"}
