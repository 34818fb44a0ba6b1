"""GSparsity lets residual blocks vanish whose branch has died."""

from __future__ import annotations

import pytest
import torch
from pruning_nets import conv, loop_evaluator, made_small, randomised
from short_nets import SHORT_NETS, narrow
from torch import nn
from torchvision.models.resnet import Bottleneck

from nni_gconv import GroupConvPruner, GSparsityPruner, load_compact, save_compact
from nni_gconv.profiling import count
from nni_gconv.speedup import steps_of
from nni_gconv.training.zoo import create_model

DIGIT = torch.zeros(1, 1, 8, 8)
IMAGE = torch.zeros(1, 3, 32, 32)
#: The paper's "conv12": the inner channels of each block.
INNER = [{"op_names_re": [r".*conv[12]"]}]
FIRST = [{"op_names_re": [r"layer.*conv1"]}]


def resnet20():
    torch.manual_seed(0)
    return randomised(create_model("resnet20", in_channels=1, width=0.5)).float().eval()


def kill(net, *layers):
    with torch.no_grad():
        for name in layers:
            net.get_submodule(name).weight.zero_()


def test_a_block_vanishes_with_its_inner_channels():
    net = resnet20()
    kill(net, "layer1.1.conv1", "layer3.0.conv1")
    pruner = GSparsityPruner(net, FIRST, dummy_input=DIGIT)
    masks = pruner.compress()[1]
    assert not masks["layer1.1.conv1"]["weight"].any()
    assert not masks["layer1.1.bn2"]["weight"].any()
    assert not masks["layer1.1.bn2"]["bias"].any()
    assert masks["layer1.0.bn2"]["bias"].all()
    small = made_small(pruner, masks)
    assert steps_of(small.layer1[1]) == ["nn.ReLU"]
    assert steps_of(small.layer3[0]) == ["shortcut", "nn.ReLU"]
    assert steps_of(small.layer1[0]) is None


@pytest.mark.slow
def test_the_file_comes_back(tmp_path):
    net = resnet20()
    kill(net, "layer1.1.conv1", "layer3.0.conv1")
    pruner = GSparsityPruner(net, FIRST, dummy_input=DIGIT)
    small = made_small(pruner, pruner.compress()[1]).float()
    save_compact(small, tmp_path / "m.safetensors")
    again = load_compact(
        tmp_path / "m.safetensors", lambda: create_model("resnet20", in_channels=1, width=0.5)
    )
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), small(x))


@pytest.mark.slow
def test_one_dead_layer_of_a_bottleneck_is_enough():
    torch.manual_seed(0)
    net = randomised(narrow(Bottleneck, [3, 4, 2, 3], 10)).float().eval()
    kill(net, "layer2.1.conv2", "layer4.2.conv1")
    pruner = GSparsityPruner(net, [{"op_names_re": [r"layer.*conv[12]"]}], dummy_input=IMAGE)
    masks = pruner.compress()[1]
    assert not masks["layer2.1.conv1"]["weight"].any()  # alive, and of no use any more
    small = made_small(pruner, masks, IMAGE)
    assert steps_of(small.layer2[1]) == steps_of(small.layer4[2]) == ["nn.ReLU"]


@pytest.mark.slow
def test_squeeze_and_excite_and_depthwise():
    torch.manual_seed(0)
    net = randomised(SHORT_NETS["efficientnet_b0"]()).float().eval()
    # What squeezes and excites makes the same channels.
    kill(net, *(f"features.3.1.block.{name}" for name in ("0.0", "1.0", "2.fc2")))
    config = [{"op_types": ["Conv2d"]}]
    pruner = GSparsityPruner(net, config, dummy_input=IMAGE)
    small = made_small(pruner, pruner.compress()[1], IMAGE)
    assert steps_of(small.features[3][1]) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"exclude_op_names": ["layer1.1.conv2"]},
        {"min_channels": 2},
        {"max_sparse_ratio": 0.9},
        {"sparse_ratio": 0.5},
    ],
)
def test_what_is_to_stay_stays(entry):
    net = resnet20()
    kill(net, "layer1.1.conv1")
    config = [{"op_names": ["layer1.1.conv1", "layer1.1.conv2"]} | entry]
    if "exclude_op_names" not in entry:
        config[0]["op_names"].pop()
    pruner = GSparsityPruner(net, config, dummy_input=DIGIT)
    masks = pruner.compress()[1]
    assert masks["layer1.1.conv1"]["weight"].any()
    assert steps_of(made_small(pruner, masks).layer1[1]) is None


@pytest.mark.slow
def test_a_layer_that_an_earlier_pruner_masks_keeps_its_block():
    net = resnet20()
    kill(net, "layer1.1.conv1", "layer1.2.conv1")
    grouped = [{"op_names": ["layer1.1.conv2"], "num_groups": 2}]
    first = GroupConvPruner(net, grouped, dummy_input=DIGIT)
    first.compress()
    pruner = GSparsityPruner.from_compressor(first, FIRST, dummy_input=DIGIT)
    small = made_small(pruner, pruner.compress()[1])
    assert small.layer1[1].conv1.out_channels == 2  # one for each group
    assert steps_of(small.layer1[2]) == ["nn.ReLU"]


@pytest.mark.slow
def test_a_layer_that_is_silent_anyhow_is_left_to_others():
    """The last convolution of a preactivated block reads nothing but what its sets make."""
    torch.manual_seed(0)
    net = randomised(create_model("preresnet29", in_channels=1)).float().eval()
    kill(net, "layer1.1.conv1")
    pruner = GSparsityPruner(net, INNER, dummy_input=DIGIT)
    pruner.compress()
    grouped = [{"op_names": ["layer2.1.conv3"], "num_groups": 2}]
    both = GroupConvPruner.from_compressor(pruner, grouped, dummy_input=DIGIT, restarts=0)
    small = made_small(both, both.compress()[1])
    assert steps_of(small.layer1[1]) == []
    assert small.layer2[1].conv3.groups == 2


def test_beside_no_branch_a_channel_stays():
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 8), nn.ReLU(), conv(8, 4)).eval()
    kill(net, "0")
    pruner = GSparsityPruner(net, [{"op_names": ["0"]}], dummy_input=DIGIT)
    assert int(pruner.compress()[1]["0"]["weight"].flatten(1).any(1).sum()) == 1


class Block(nn.Module):
    """Without norms, in front of which dead filters would come back."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(8, 8), conv(8, 8)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


def residual_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        conv(1, 8), Block(), Block(), Block(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def train(folder, *, budget=None, epochs=3, resume=False, stop=None, seed=0):
    """Train with a gain that kills the first convolution of the second block."""
    net = residual_net(seed)
    evaluator = loop_evaluator(net, folder, epochs, resume=resume, lr=0.01)
    config = [{"op_names_re": [r"\d.conv1"], "gain": 0.0}, {"op_names": ["2.conv1"], "gain": 100.0}]
    pruner = GSparsityPruner(net, config, evaluator, budget=budget)
    after_epoch = pruner.after_epoch

    def stopping(epoch):
        after_epoch(epoch)
        if epoch == stop:
            raise KeyboardInterrupt

    pruner.after_epoch = stopping
    return pruner, pruner.compress(max_epochs=epochs)[1]


def test_it_dies_in_training_and_is_silent_from_then_on(tmp_path):
    pruner, masks = train(tmp_path)
    assert not masks["2.conv2"]["weight"].any()
    small = made_small(pruner, masks)
    assert [steps_of(small[i]) for i in (1, 2, 3)] == [None, ["nn.ReLU"], None]
    # What is left trains on.
    small.train()(torch.randn(4, 1, 8, 8).double()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "stop"), [(None, 1), ({"macs": 0.5}, 4)])
def test_killed_and_resumed_it_ends_the_same(tmp_path, budget, stop):
    settings = {"budget": budget, "epochs": stop + 2}
    _, masks = train(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=stop, **settings)
    _, again = train(tmp_path / "cut", resume=True, seed=3, **settings)
    assert not masks["2.conv2"]["weight"].any()
    assert all(
        torch.equal(mask, again[module][target])
        for module, targets in masks.items()
        for target, mask in targets.items()
        if mask is not None
    )


def test_a_budget_counts_what_goes_with_a_block(tmp_path):
    pruner, masks = train(tmp_path, budget={"macs": 0.5}, epochs=4)
    small = made_small(pruner, masks)
    assert steps_of(small[2]) == ["nn.ReLU"]
    share = count(small, DIGIT.double()).macs / count(residual_net(), DIGIT).macs
    assert 0.9 * 0.5 < share <= 0.5  # a channel of these layers is 4 % of them
