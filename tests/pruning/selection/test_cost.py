"""What a removal is said to cost is what the small model costs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pruning_nets import GroupBlock, mobile_net, plain_net
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.graph import Coupling
from nni_gconv.profiling import count
from nni_gconv.profiling.budget import parse_budget
from nni_gconv.pruning.selection.allocation import removal_steps
from nni_gconv.pruning.selection.cost import CostModel
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.zoo import create_model


def transposed_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, stride=2), nn.ReLU(),
        nn.Conv2d(12, 4, 1),
    )  # fmt: skip


NETS = {
    "resnet20-A": (lambda: create_model("resnet20", width=0.5), (3, 32, 32)),
    "resnet20-B": (lambda: create_model("resnet20b", width=0.5), (3, 32, 32)),
    "preresnet11": (lambda: create_model("preresnet11"), (3, 32, 32)),
    "densenet10": (lambda: create_model("densenet10"), (3, 32, 32)),
    "group block": (GroupBlock, (3, 16, 16)),
    "depthwise": (mobile_net, (3, 16, 16)),
    "linear head": (plain_net, (3, 8, 8)),
    "transposed": (transposed_net, (3, 9, 9)),
}


@pytest.mark.parametrize("name", NETS)
def test_cost_equals_the_count_of_the_small_model(name):
    build, shape = NETS[name]
    net, example = build(), torch.zeros(2, *shape)
    coupling = Coupling.trace(net, example)
    cost = CostModel(net, example, coupling)
    dense = count(net, example)
    assert (cost.dense("params"), cost.dense("macs")) == (dense.params, dense.macs)
    rng = np.random.default_rng(1)
    for share in (0.2, 0.9):
        removed = coupling.empty()
        for coupled in coupling.sets:
            if coupled.reason is None:
                steps = removal_steps(rng.random(coupled.size), blocks=coupled.parts)
                for step in steps[: int(rng.random() * 2 * share * len(steps))]:
                    removed[coupled.classes[step]] = True
        assert removed.any()
        small = ModelSpeedup(
            copy.deepcopy(net), example, coupling.masks(removed), verify=False
        ).speedup_model()
        found = count(small, example)
        assert found.params < dense.params
        assert (cost("params", removed), cost("macs", removed)) == (found.params, found.macs)


def test_nothing_removed_costs_the_dense_model():
    net, example = plain_net(), torch.zeros(1, 3, 8, 8)
    cost = CostModel(net, example, Coupling.trace(net, example))
    nothing = cost.coupling.empty()
    assert cost("params", nothing) == sum(p.numel() for p in net.parameters())
    assert cost("macs", nothing) == 8 * 8 * 9 * (3 * 12 + 12 * 8) + 32 * 10 + 10 * 4


def test_a_fraction_and_a_count_are_told_apart():
    net, example = plain_net(), torch.zeros(1, 3, 8, 8)
    cost = CostModel(net, example, Coupling.trace(net, example))
    assert cost.limit("params", 1.0) == cost.params
    assert cost.limit("params", 0.25) == cost.params / 4
    assert cost.limit("params", 700) == 700


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, r"expected a mapping such as \{macs: 0.5\}, got \{\}"),
        (0.5, r"expected a mapping .* got 0.5"),
        ({"mac": 0.5}, r"budget: unknown measure 'mac'; did you mean 'macs'\?"),
        ({"macs": 0}, r"budget.macs: 0 is not a positive number"),
        ({"macs": -1}, r"budget.macs: -1 is not a positive number"),
        ({"params": True}, r"budget.params: True is not a positive number"),
        ({"params": "half"}, r"budget.params: 'half' is not a positive number"),
        ({"macs": float("nan")}, r"budget.macs: nan is not a positive number"),
        ({"macs": float("inf")}, r"budget.macs: inf is not a positive number"),
        ({"latency": 3}, r"budget.latency: 3 is not a fraction of the dense latency"),
    ],
)
def test_a_wrong_budget_is_one_clear_line(budget, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parse_budget(budget)
    assert "\n" not in str(caught.value)
