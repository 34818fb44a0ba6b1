"""config_lists of NNI 2, which NNI 3 still reads."""

from __future__ import annotations

import logging

import pytest
import torch
from mask_tools import same_masks
from pruner_cases import GROUP_PRUNERS, PRUNERS
from pruning_nets import conv
from torch import nn

from nni_gconv import FPGMPruner, GroupConvPruner
from nni_gconv.config_list import modern
from nni_gconv.errors import ConfigError

X = torch.zeros(1, 3, 8, 8)


class MyConv(nn.Conv2d):
    """A user's own."""


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 16), nn.ReLU(), MyConv(16, 16, 1), nn.ReLU(), conv(16, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip


def prune(config, kind=FPGMPruner, **options):
    return kind(net(), config, dummy_input=X, **options).compress()[1]


LAST = {"op_names": ["11"], "exclude": True}
PAIRS = {
    "sparsity": (
        [{"op_types": ["Conv2d"], "sparsity": 0.5}],
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}],
    ),
    "sparsity_per_layer": (
        [{"op_types": ["Conv2d"], "sparsity_per_layer": 0.25}],
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.25}],
    ),
    "total_sparsity": (
        [{"op_types": ["Conv2d"], "total_sparsity": 0.5, "max_sparsity_per_layer": 0.75}],
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "max_sparse_ratio": 0.75,
          "global_group_id": 0}],
    ),
    "exclude": (
        [{"op_types": ["Linear", "Conv2d"], "sparsity": 0.5}, LAST, {"op_names": ["0"],
          "exclude": True}],
        [{"op_types": ["Linear", "Conv2d"], "sparse_ratio": 0.5, "exclude_op_names": ["11", "0"]}],
    ),
    "exclude of a type and a name": (
        [{"op_types": ["Conv2d"], "sparsity": 0.5},
         {"op_types": ["Conv2d"], "op_names": ["2", "9"], "exclude": True}],
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "exclude_op_names": ["2"]}],
    ),
    "exclude of a type, subclasses too": (
        [{"op_types": ["default"], "sparsity": 0.5}, LAST,
         {"op_types": ["Conv2d"], "exclude": True}],
        [{"op_names": ["9"], "sparse_ratio": 0.5}],
    ),
    "op_partial_names": (
        [{"op_partial_names": ["2"], "sparsity": 0.5}],
        [{"op_names": ["2"], "sparse_ratio": 0.5}],
    ),
    "default": (
        [{"op_types": ["default"], "sparsity": 0.5}, LAST],
        [{"op_types": ["Conv2d", "Linear", "MyConv"], "sparse_ratio": 0.5,
          "exclude_op_names": ["11"]}],
    ),
    "default, new keys": (
        [{"op_types": ["default"], "sparse_ratio": 0.5, "exclude_op_names": ["11"]}],
        [{"op_types": ["Conv2d", "Linear", "MyConv"], "sparse_ratio": 0.5,
          "exclude_op_names": ["11"]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_old_keys_ask_what_new_ones_ask(name, caplog):
    old, new = PAIRS[name]
    with caplog.at_level(logging.WARNING):
        found = prune(old)
    assert any("of NNI 2 is read as" in line for line in caplog.messages)
    caplog.clear()
    assert same_masks(found, prune(new))
    assert not any("NNI 2" in line for line in caplog.messages)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRUNERS, *GROUP_PRUNERS])
def test_every_pruner_reads_them(name):
    groups = name in GROUP_PRUNERS
    if name == "gconv-shaping":
        pytest.skip("it has to train")
    kind = {**PRUNERS, **GROUP_PRUNERS}[name]
    goal = {"num_groups": 2} if groups else {"sparsity": 0.5}
    config = [{"op_types": ["default"], **goal}, {"op_types": ["Linear"], "exclude": True},
              {"op_partial_names": ["0"], "exclude": True}]  # fmt: skip
    new = [{"op_types": ["Conv2d", "MyConv"], "exclude_op_names": ["0"],
            **({"num_groups": 2} if groups else {"sparse_ratio": 0.5})}]  # fmt: skip
    options = {"schedule": "one-shot"} if groups else {}
    assert same_masks(prune(config, kind, **options), prune(new, kind, **options))


def test_it_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        prune([{"op_types": ["Conv2d"], "sparsity": 0.5}])
    assert [m for m in caplog.messages if "NNI 2" in m] == [
        "config_list[0]: sparsity of NNI 2 is read as sparse_ratio"
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            [{"op_types": ["Conv2d"], "sparsity": 0.5, "sparse_ratio": 0.4}],
            "sparsity and sparse_ratio say the same",
        ),
        ([{"op_types": ["Conv2d"], "quant_types": ["weight"], "quant_bits": 8}], "a quantiser's"),
        (
            [{"op_types": ["Conv2d"], "sparsity": 0.5}, {"op_names": ["conv9"], "exclude": True}],
            r"config_list\[1\].op_names: 'conv9' matches no module",
        ),
        ([{"op_types": ["Conv2d"], "sparsity": 1.5}], "sparse_ratio: 1.5 is not allowed"),
        ([{"op_types": ["Conv2d"], "exclude": True}], "the list is empty"),
        ([{"op_names": 5, "exclude": True}], r"config_list\[0\].op_names: expected a list"),
        ([{"op_names": [["0"]], "exclude": True}], r"op_names: expected a list of strings"),
        ([{"op_names_re": ["("], "exclude": True}], "'\\(' is not a regular expression"),
        ([{"op_partial_names": ["("], "sparsity": 0.5}], "is not a regular expression"),
        ([{"op_partial_names": "conv", "sparsity": 0.5}], "op_partial_names: expected a list"),
        ([{"op_types": "default", "sparsity": 0.5}], "op_types: expected a list of strings"),
        ([{"op_types": ["Conv2d"], "sparsity": "half"}], "sparse_ratio: 'half' is not allowed"),
        ([{"op_types": ["Conv2d"], "total_sparsity": None}], "has neither sparse_ratio"),
        ([{"op_names": ["7"], "sparsity": 0.5}], "7 is a AdaptiveAvgPool2d"),
    ],
)
def test_what_contradicts_itself_is_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        FPGMPruner(net(), config, dummy_input=X)
    assert "\n" not in str(caught.value)


def test_new_lists_are_left_alone():
    config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "exclude_op_names": ["0"]}]
    assert modern(net(), config) is config
    assert modern(net(), "nonsense") == "nonsense"


def test_the_list_given_is_not_changed():
    config = [{"op_types": ["default"], "num_groups": 2}, LAST]
    GroupConvPruner(net(), config, dummy_input=X)
    assert config == [{"op_types": ["default"], "num_groups": 2}, LAST]
    assert LAST == {"op_names": ["11"], "exclude": True}
