"""Arguments in NNI's order, and what is handed to users can be saved and read back."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from pruner_cases import GROUP_PRUNERS, PRUNERS
from pruning_nets import GroupBlock, loop_evaluator

from nni_gconv import ModelSpeedup
from nni_gconv.errors import ConfigError
from nni_gconv.graph import load_masks

X = torch.zeros(1, 1, 8, 8)
ALL = {**PRUNERS, **GROUP_PRUNERS}


def config_of(name):
    goal = {"num_groups": 4} if name in GROUP_PRUNERS else {"sparse_ratio": 0.5}
    return [{"op_types": ["Conv2d"], **goal}]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("place", ["evaluator", "existed_wrappers", "fifth"])
def test_an_input_by_position_is_one_line(name, place):
    net = GroupBlock(channels=1)
    before = set(net.state_dict())
    given = {"evaluator": (X,), "existed_wrappers": (None, X), "fifth": (None, None, X)}[place]
    with pytest.raises((ConfigError, TypeError), match=r"dummy_input=|positional") as caught:
        ALL[name](net, config_of(name), *given)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(net.state_dict()) == before


@pytest.mark.parametrize("wrong", [(X,), {"x": X}, torch.nn.ReLU(), "evaluator"])
def test_what_is_no_evaluator_is_named(wrong):
    said = rf"FPGMPruner: evaluator: expected an evaluator of NNI, got {type(wrong).__name__}"
    with pytest.raises(ConfigError, match=said):
        PRUNERS["fpgm"](GroupBlock(channels=1), config_of("fpgm"), evaluator=wrong)


def test_copies_are_made_without_arguments():
    pruner = PRUNERS["fpgm"](GroupBlock(channels=1), config_of("fpgm"), dummy_input=X)
    assert type(copy.copy(pruner)) is type(pruner)


def read_back(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_that_is_handed_out_can_be_read_back(name, tmp_path):
    """Masks, the pruner's state, the wrapped and the small network, the optimizer's state."""
    net = GroupBlock(channels=1)
    pruner = ALL[name](net, config_of(name), loop_evaluator(net, tmp_path, 2))
    states, after_epoch = [], pruner.after_epoch

    def watched(epoch):
        after_epoch(epoch)
        states.append(pruner.optimizer.state_dict())

    pruner.after_epoch = watched
    _, masks = pruner.compress(max_epochs=2)
    assert type(masks) is dict
    assert {type(targets) for targets in masks.values()} == {dict}
    for thing in (pruner.state_dict(), pruner.generate_masks(), states[-1], net.state_dict()):
        read_back(thing)
    torch.save(masks, tmp_path / "masks.pt")
    again = torch.load(tmp_path / "masks.pt", weights_only=True)
    for module, targets in masks.items():
        for target, mask in targets.items():
            assert mask is None or torch.equal(again[module][target], mask)
    pruner.unwrap_model()
    small = ModelSpeedup(net, X, str(tmp_path / "masks.pt")).speedup_model()
    read_back(small.state_dict())
    assert load_masks(tmp_path / "masks.pt").keys() == masks.keys()
