"""ModelSpeedup called as NNI's class of this name is."""

from __future__ import annotations

import logging

import pytest
import torch
from speedup_tools import randn, randomise, rows_off
from torch import fx, nn

from nni_gconv import ModelSpeedup
from nni_gconv.errors import CheckpointError, OptionError

X = randn(2, 3, 8, 8)


def net():
    return randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 4},
        {"batch_dim": 0, "batch_size": 8, "map_location": "cpu"},
        {"garbage_collect_values": False, "logger": logging.getLogger("mine")},
        {"confidence": 8},
        {"customized_mask_updaters": None, "customized_replacers": []},
    ],
)
def test_what_is_not_needed_is_taken(given):
    small = ModelSpeedup(net(), X, rows_off(net(), "0", [1, 2]), **given).speedup_model()
    assert (small[0].out_channels, small[2].in_channels) == (6, 6)


def test_a_graph_of_the_model_is_taken():
    model = net()
    graph = fx.symbolic_trace(model)
    speedup = ModelSpeedup(model, X, rows_off(model, "0", [1, 2]), graph_module=graph)
    assert speedup.speedup_model() is model
    assert model[0].out_channels == 6


@pytest.mark.parametrize("form", ["masks", "file"])
def test_masks_file_of_nni_2(form, tmp_path):
    masks = rows_off(net(), "0", [1, 2])
    torch.save(masks, tmp_path / "masks.pth")
    given = masks if form == "masks" else str(tmp_path / "masks.pth")
    small = ModelSpeedup(net(), X, masks_file=given).speedup_model()
    assert small[0].out_channels == 6


def test_a_place_to_map_to_by_position():
    assert (
        ModelSpeedup(net(), X, rows_off(net(), "0", [1]), "cpu").speedup_model()[0].out_channels
        == 7
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"customized_replacers": [object()]}, "customized_replacers: cannot act here"),
        ({"customized_mask_updaters": [object()]}, "customized_mask_updaters: cannot act here"),
        ({"batchsize": 4}, "unknown option 'batchsize'"),
        ({"constant": "fold"}, "did you mean 'constants'"),
        ({"masks_file": {}}, "masks_or_file and masks_file are the same"),
    ],
)
def test_what_cannot_act_is_one_line(given, message):
    with pytest.raises(OptionError, match=message) as caught:
        ModelSpeedup(net(), X, {}, **given)
    assert "\n" not in str(caught.value)


def test_no_masks_at_all():
    with pytest.raises(CheckpointError, match="got NoneType"):
        ModelSpeedup(net(), X).speedup_model()
