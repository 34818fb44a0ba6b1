"""round_to: auto: what is timed and chosen; no test rests on what is quick here."""

import pytest
import torch
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup
from nni_gconv.config_list import resolve
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.selection import multiples
from nni_gconv.pruning.selection.multiples import MULTIPLES, measured_multiples, near_half

X = torch.zeros(1, 3, 8, 8)
AUTO = [{"op_types": ["Conv2d"], "round_to": "auto"}]


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 24, 3), nn.ReLU(), nn.Conv2d(24, 12, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 4))


@pytest.fixture
def clock(monkeypatch):
    """Stand in for the clock: the first layer's quickest multiple is 32, the others' is 8."""
    calls = []

    def quickest(unit, timer):
        del timer
        calls.append(unit.name)
        return 32 if unit.name == "0" else 8

    monkeypatch.setattr(multiples, "_quickest", quickest)
    return calls


@pytest.mark.parametrize("channels", range(1, 300, 7))
def test_widths_that_are_timed(channels):
    for multiple, width in near_half(channels).items():
        assert width % multiple == 0
        assert width % (2 * multiple)
        assert 0 < width < channels
        assert abs(width - channels / 2) <= 2 * multiple
    assert set(near_half(channels)) == {m for m in MULTIPLES if 2 * m <= channels}


def test_every_layer_gets_a_number_of_its_own(clock):
    layers, _ = resolve(net(), [*AUTO, {"op_names": ["2"], "round_to": 4}])
    found = measured_multiples(net(), X, layers)
    assert {name: layer.round_to for name, layer in found.items()} == {"0": 32, "2": 4, "4": 8}
    assert clock == ["0", "4"]  # what has a number is not timed
    plain, _ = resolve(net(), [{"op_types": ["Conv2d"], "round_to": 8}])
    assert measured_multiples(net(), None, plain) == plain
    with pytest.raises(ConfigError, match="round_to: auto: needs dummy_input"):
        measured_multiples(net(), None, layers)


def test_it_is_really_measured():
    layers, _ = resolve(net(), AUTO)
    found = measured_multiples(net(), X, layers)
    assert found["0"].round_to in MULTIPLES
    assert found["2"].round_to == 8  # of 24 channels nothing else can be kept
    assert found["4"].round_to == 1  # too narrow


def test_a_pruner_keeps_the_multiples_within_the_budget(clock):
    model = net()
    pruner = FPGMPruner(model, AUTO, dummy_input=X, budget={"macs": 0.6})
    assert pruner.layers["0"].round_to == 32
    _, masks = pruner.compress()
    pruner.unwrap_model()
    small = ModelSpeedup(model, X, masks).speedup_model()
    assert small[0].out_channels in (32, 64)
    assert small[2].out_channels in (8, 16, 24)


@pytest.mark.parametrize("value", ["quick", 0, True])
def test_other_values(value):
    with pytest.raises(ConfigError, match="round_to"):
        resolve(net(), [{"op_types": ["Conv2d"], "round_to": value}])
