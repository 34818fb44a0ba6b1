"""Masks of NNI's own pruners, which know of no coupling, made small."""

from __future__ import annotations

import copy

import pytest
import torch
from nni.compression.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    SlimPruner,
    TaylorPruner,
)
from nni_evaluator import evaluator
from pruning_nets import mobile_net
from speedup_tools import assert_same_outputs, masked, outputs_of, randn, randomise, shrink, size
from torch import nn
from torch.nn import functional as F
from torchvision import models

from nni_gconv import ModelSpeedup

X = randn(2, 3, 8, 8)


def two_layers():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def scale_masks(net, shares, seed=0):
    """Masks of norms' scales alone, as NNI's SlimPruner leaves them: shifts are all ones."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, share in shares.items():
        size_ = net.get_submodule(name).num_features
        gone = torch.randperm(size_, generator=generator)[: round(share * size_)]
        kept = torch.ones(size_, dtype=torch.float64).index_fill(0, gone, 0)
        masks[name] = {"weight": kept, "bias": torch.ones_like(kept)}
    return masks


def with_shifts(masks):
    return {name: {"weight": m["weight"], "bias": m["weight"]} for name, m in masks.items()}


def test_slim_pruner_of_nni_keeps_what_was_asked():
    torch.manual_seed(0)
    net = randomise(two_layers()).float()
    config = [{"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}]
    pruner = SlimPruner(net, config, evaluator(net), training_steps=3)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    assert bool(masks["1"]["bias"].all())
    speedup = ModelSpeedup(net, X.float(), masks)
    speedup.speedup_model()
    assert (net[0].out_channels, net[3].out_channels, net[8].in_features) == (8, 16, 16)
    assert (net[1].num_features, net[4].num_features) == (8, 16)
    assert not any("stay" in note for note in speedup.report().notes)


def test_scales_that_padding_hides_are_silenced_and_said():
    """Where the reader pads, the constant cannot be folded: the shift goes with its scale."""
    net = randomise(two_layers())
    with torch.no_grad():
        net[1].bias.fill_(0.3)
    masks = scale_masks(net, {"1": 0.5})
    expected = outputs_of(masked(net, with_shifts(masks)), X)
    assert not torch.allclose(expected[0], outputs_of(masked(net, masks), X)[0])
    speedup = ModelSpeedup(net, X, masks)
    assert_same_outputs(expected, outputs_of(speedup.speedup_model(), X))
    assert net[0].out_channels == 8
    assert "1.bias: 8 values zeroed" in " ".join(speedup.report().notes)


def test_scales_are_folded_where_that_is_exact():
    net = randomise(two_layers())
    net[3] = nn.Conv2d(16, 32, 1).double()
    speedup = shrink(net, X, scale_masks(net, {"1": 0.5}))
    assert net[0].out_channels == 8
    assert not any("zeroed" in note for note in speedup.report().notes)


class Sum(nn.Module):
    """A sum of two branches, each with its norm, read by a convolution that pads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.na, self.nb = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return self.head(F.relu(self.na(self.a(x)) + self.nb(self.b(x))))


def test_one_scale_of_a_sum_is_left_alone_and_listed():
    """The other summand still needs the channel: this one's shift counts there."""
    net = randomise(Sum())
    masks = scale_masks(net, {"na": 0.5})
    speedup = shrink(net, X, masks, smaller=False)
    (note,) = speedup.report().notes
    assert note == "na.weight: 4 masked channels stay: what it is coupled to is not masked"


def test_both_scales_of_a_sum_go():
    net = randomise(Sum())
    masks = scale_masks(net, {"na": 0.5, "nb": 0.5})
    masks["nb"] = masks["na"]
    shrink(copy.deepcopy(net), X, with_shifts(masks))
    expected = outputs_of(masked(net, with_shifts(masks)), X)
    ModelSpeedup(net, X, masks).speedup_model()
    assert (net.a.out_channels, net.b.out_channels, net.head.in_channels) == (4, 4, 4)
    assert_same_outputs(expected, outputs_of(net, X))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_a_filter_here_and_a_scale_there(kind):
    """Of a sum one branch is masked by its filters, the other by its norm's scales."""
    net = randomise(Sum())
    net.nb = kind(8, affine=True).double().eval()
    nn.init.constant_(net.nb.bias, 0.2)
    masks = scale_masks(net, {"nb": 0.5})
    gone = masks["nb"]["weight"] == 0
    rows = torch.ones_like(net.a.weight)
    rows[gone] = 0
    masks["a"] = {"weight": rows, "bias": masks["nb"]["weight"]}
    masks["na"] = {"weight": masks["nb"]["weight"], "bias": masks["nb"]["weight"]}
    expected = outputs_of(masked(net, {**masks, **with_shifts({"nb": masks["nb"]})}), X)
    ModelSpeedup(net, X, masks).speedup_model()
    assert net.head.in_channels == 4
    assert_same_outputs(expected, outputs_of(net, X))


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        (LevelPruner, "Conv2d"),
        (L1NormPruner, "Conv2d"),
        (L2NormPruner, "Conv2d"),
        (FPGMPruner, "Conv2d"),
        (TaylorPruner, "Conv2d"),
        (SlimPruner, "Conv2d"),
        (SlimPruner, "BatchNorm2d"),
    ],
)
def test_masks_of_every_pruner_of_nni(kind, types):
    torch.manual_seed(0)
    net = randomise(two_layers()).float()
    config = [{"op_types": [types], "sparse_ratio": 0.5}]
    trained = {} if kind not in (SlimPruner, TaylorPruner) else {"training_steps": 2}
    given = (evaluator(net),) if trained else ()
    pruner = kind(net, config, *given, **trained)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    speedup = ModelSpeedup(net, X.float(), masks)
    speedup.speedup_model()
    widths = [net[i].out_channels for i in (0, 3)]
    assert widths == ([16, 32] if kind is LevelPruner else [8, 16])  # it masks single weights
    assert speedup.report().difference < 1e-9


@pytest.mark.parametrize(
    "make",
    [
        lambda net, config: MovementPruner(net, config, evaluator(net), 1, 3),
        lambda net, config: AGPPruner(L1NormPruner(net, config), 1, 4, evaluator(net)),
        lambda net, config: LinearPruner(FPGMPruner(net, config), 1, 4, evaluator(net)),
        lambda net, config: AGPPruner(
            TaylorPruner(net, config, evaluator(net), training_steps=1), 1, 4
        ),
    ],
    ids=["movement", "agp", "linear", "agp of taylor"],
)
def test_masks_that_nni_makes_while_it_trains(make):
    torch.manual_seed(0)
    net = randomise(two_layers()).float()
    pruner = make(net, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress(4, None)
    pruner.unwrap_model()
    speedup = ModelSpeedup(net, X.float(), masks)
    speedup.speedup_model()
    assert [net[i].out_channels for i in (0, 3)] == [8, 16]
    assert speedup.report().difference < 1e-9


# -- silence, fold, and both -----------------------------------------------------------------------


def shares_left(net, dummy, masks):
    found = {}
    for constants in ("silence", "fold", "both", None):
        options = {} if constants is None else {"constants": constants}
        speedup = ModelSpeedup(copy.deepcopy(net), dummy, masks, verify=False, **options)
        small = speedup.speedup_model()
        found[constants] = size(small) / size(net)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "best"),
    [("mobilenet_v2", "fold"), ("shufflenet_v2_x1_0", "fold"), ("resnet18", "silence")],
)
def test_the_default_is_no_larger_than_the_better_of_both(name, best):
    torch.manual_seed(0)
    net = randomise(getattr(models, name)(num_classes=10)).float()
    pruner = L1NormPruner(net, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    left = shares_left(net, randn(1, 3, 32, 32).float(), masks)
    other = "fold" if best == "silence" else "silence"
    assert left[None] == left["both"] <= left[best] < 0.9 * left[other]


def test_both_folds_what_silence_leaves():
    """Depthwise filters are masked, the layers before them are not: nothing is changed."""
    net = randomise(mobile_net())
    with torch.no_grad():
        net[4].running_mean.zero_()
        net[4].bias.fill_(0.3)
    gone = [1, 3, 6]
    mask = torch.ones_like(net[3].weight)
    mask[gone] = 0
    masks = {"3": {"weight": mask}}
    small = copy.deepcopy(net)
    shrink(small, X, masks, constants="silence", smaller=False)
    speedup = shrink(net, X, masks)
    assert net[0].out_channels == net[3].out_channels == net[6].in_channels == 5
    assert not any("zeroed" in note for note in speedup.report().notes)
