"""Which group counts a layer allows."""

from __future__ import annotations

import math

import pytest
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import group_choices, groups_for_max_size, not_groupable
from nni_gconv.groupconv.search import GroupRequest, group_requests


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ((64, 48), {}, (1, 2, 4, 8, 16)),
        ((64, 48), {"min_factor": 8}, (1, 2, 4)),
        ((16, 16), {}, (1, 2, 4, 8)),
        ((16, 16), {"depthwise": True}, (1, 2, 4, 8, 16)),
        ((64, 3), {}, (1,)),
        ((16, 32), {}, (1, 2, 4, 8, 16)),  # 16 groups of 1 filter and 2 channels: not depthwise
        ((256, 256), {}, (1, 2, 4, 8, 16, 32, 64)),
        ((256, 256), {"max_groups": 256, "depthwise": True}, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
        ((12, 18), {}, (1, 2, 3, 6)),
        ((7, 7), {}, (1,)),
        ((1, 1), {"depthwise": True}, (1,)),
        ((64, 64), {"min_factor": 100}, (1,)),
        ((64, 64), {"max_groups": 1}, (1,)),
    ],
)
def test_choices(sizes, options, expected):
    assert group_choices(*sizes, **options) == expected


def test_choices_are_all_that_the_rules_allow():
    for filters in range(1, 25):
        for channels in range(1, 25):
            expected = tuple(
                g
                for g in range(1, 13)
                if filters % g == channels % g == 0
                and (g == 1 or min(filters, channels) / g >= 2)
                and (g == 1 or not g == filters == channels)
            )
            assert group_choices(filters, channels, max_groups=12, min_factor=2) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 32, 8), 4),
        ((64, 32, 8), 8),
        ((16, 24, 6), 4),
        ((16, 24, 4), None),
        ((16, 24, 7), None),
        ((16, 16, 16), 1),
        ((16, 8, 64), 1),
        ((512, 512, 1), 512),
    ],
)
def test_groups_of_a_largest_size(sizes, expected):
    groups = groups_for_max_size(*sizes)
    assert groups == expected
    if groups is not None:
        filters, channels, size = sizes
        assert math.gcd(filters, channels) % groups == 0
        assert max(filters, channels) // groups <= size


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None])
def test_a_count_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match=r"max_groups: .* is not allowed"):
        group_choices(8, 8, max_groups=value)
    with pytest.raises(ConfigError, match=r"max_group_size: .* is not allowed"):
        groups_for_max_size(8, 8, value)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Conv2d(8, 8, 3, groups=4), "it has 4 groups already"),
        (nn.Conv2d(8, 16, 3, groups=8), "it is depthwise already"),
        (nn.ConvTranspose2d(8, 8, 3), "transposed"),
        (nn.Linear(8, 8), "a Linear is no convolution"),
        (nn.BatchNorm2d(8), "a BatchNorm2d is no convolution"),
        (nn.Conv2d(3, 96, 3), "colours"),
        (nn.Conv2d(9, 8, 1), "8 filters and 9 input channels have no common divisor"),
    ],
)
def test_why_a_layer_cannot_be_grouped(module, said):
    assert said in not_groupable(module)


def test_groups_that_can_be_split_further():
    assert not_groupable(nn.Conv2d(8, 8, 3, groups=4), further=True) is None
    said = "it has 2 groups already, of 3 filters and 4 input channels"
    assert said in not_groupable(nn.Conv2d(8, 6, 3, groups=2), further=True)
    assert not_groupable(nn.Conv2d(8, 8, 3, groups=8), further=True) == "it is depthwise already"


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_dense_convolution_can_be_grouped(kind):
    assert not_groupable(kind(8, 12, 3, bias=False)) is None


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(4, 2)
    )


def test_requests_follow_the_selection_and_later_entries_win():
    requests, skipped = group_requests(
        net(),
        [
            {"op_types": ["Conv2d"], "num_groups": 2},
            {"op_names": ["2"], "max_group_size": 4},
            {"op_names": ["1"]},  # selects again and asks nothing new
        ],
    )
    assert requests == {"1": GroupRequest(num_groups=2), "2": GroupRequest(max_group_size=4)}
    assert list(skipped) == ["0"]
    assert "colours" in skipped["0"]


def test_a_linear_layer_is_skipped_with_its_reason():
    requests, skipped = group_requests(net(), [{"op_types": ["Linear"]}])
    assert requests == {}
    assert skipped == {"4": "a Linear is no convolution"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"num_groups": 0}, r"config_list\[1\].num_groups: 0 is not allowed"),
        ({"num_groups": 2.5}, r"config_list\[1\].num_groups: 2.5 is not allowed"),
        ({"max_group_size": True}, r"config_list\[1\].max_group_size: True is not allowed"),
        ({"num_groups": 2, "max_group_size": 4}, r"config_list\[1\]: .* exclude each other"),
        ({"sparse_ratio": 0.5}, r"config_list\[1\].sparse_ratio: has no meaning for group"),
        ({"min_channels": 2}, r"config_list\[1\].min_channels: has no meaning for group"),
        ({"num_group": 2}, r"config_list\[1\]: unknown key 'num_group'; did you mean 'num_groups'"),
    ],
)
def test_a_wrong_entry_is_one_clear_line(entry, said):
    config_list = [{"op_names": ["2"]}, {"op_types": ["Conv2d"], **entry}]
    with pytest.raises(ConfigError, match=said) as caught:
        group_requests(net(), config_list)
    assert "\n" not in str(caught.value)
