"""Layers under two names, layers that are called twice, and weights that two layers share."""

from __future__ import annotations

import pytest
import torch
from pruner_cases import GROUP_PRUNERS, PRUNERS
from pruning_nets import conv, made_small, randomised
from torch import nn

ALL = {**PRUNERS, **{k: v for k, v in GROUP_PRUNERS.items() if k != "gconv-shaping"}}
X = torch.zeros(1, 3, 8, 8)


class TwoNames(nn.Module):
    """Each layer has a name of its own and one in a Sequential."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.inner = conv(3, 8), nn.BatchNorm2d(8), conv(8, 16)
        self.all = nn.Sequential(self.conv, self.bn, nn.ReLU(), self.inner, nn.ReLU())
        self.head = conv(16, 4)

    def forward(self, x):
        return self.head(self.all(x))


class CalledTwice(nn.Module):
    """One layer runs twice: in and out are the same channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.inner, self.head = conv(3, 8), conv(8, 8), conv(8, 4)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.head(self.inner(self.inner(x).relu()).relu())


class OneWeight(nn.Module):
    """Two layers with one weight, biases of their own."""

    def __init__(self):
        super().__init__()
        self.conv, self.inner, self.twin, self.head = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 4)
        self.twin.weight = self.inner.weight

    def forward(self, x):
        x = self.conv(x).relu()
        return self.head((self.inner(x) + self.twin(x)).relu())


@pytest.mark.parametrize("kind", [TwoNames, CalledTwice, OneWeight])
@pytest.mark.parametrize("name", ALL)
def test_every_pruner(name, kind):
    torch.manual_seed(0)
    net = randomised(kind())
    groups = name in GROUP_PRUNERS
    goal = {"num_groups": 2} if groups else {"sparse_ratio": 0.5}
    options = {"schedule": "one-shot"} if groups else {}
    pruner = ALL[name](net, [{"op_types": ["Conv2d"], **goal}], dummy_input=X, **options)
    _, masks = pruner.compress()
    small = made_small(pruner, masks, X)
    if not groups:
        assert (small.conv.out_channels, small.inner.in_channels) == (4, 4)
    if kind is TwoNames:
        assert small.all[0] is small.conv or groups


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("gconv")])
def test_a_layer_is_grouped_though_another_with_its_weight_stays_dense(name):
    torch.manual_seed(0)
    net = randomised(OneWeight())
    config = [{"op_names": ["inner"], "num_groups": 2}]
    pruner = ALL[name](net, config, dummy_input=X, schedule="one-shot")
    _, masks = pruner.compress()
    small = made_small(pruner, masks, X)  # gives what the masked one gives
    assert small.twin.groups == 1
    assert [m.groups for m in small.inner.modules() if isinstance(m, nn.Conv2d)] == [2]
