"""Residual blocks whose branch is masked: exchanged for what is left of them, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from speedup_tools import randomise
from torch import nn
from torch.nn import functional as F
from torchvision.models import efficientnet_b0, mobilenet_v2, resnet50

from nni_gconv import load_compact, save_compact
from nni_gconv.artefact import plan_of, rebuild
from nni_gconv.errors import CheckpointError
from nni_gconv.graph import Coupling, find_branches, trace
from nni_gconv.profiling import count
from nni_gconv.speedup import ModelSpeedup, steps_of
from nni_gconv.training.zoo import create_model

X = torch.zeros(1, 3, 32, 32)
NETS = {
    "resnet20": lambda: create_model("resnet20"),
    "resnet20-B": lambda: create_model("resnet20", shortcut="B"),
    "preresnet29": lambda: create_model("preresnet29"),
    "resnet50": lambda: resnet50(width_per_group=16),
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
}


def lively(net):
    return randomise(net).float()


def masks_without(net, *blocks, example=X, downsample=False):
    """Masks of the branches of blocks: their inner channels, and the layer they end with."""
    coupling = Coupling.trace(net, example)
    found = {
        b.block: b
        for b in find_branches(coupling.graph)
        if ("downsample" in b.end or "shortcut" in b.end) == downsample
    }
    removed = coupling.empty()
    for block in blocks:
        for coupled in coupling.sets:
            if all(m.module in found[block].layers for m in coupled.members):
                removed[coupled.classes] = coupled.reason is None
    masks = coupling.masks(removed)
    for block in blocks:
        end = found[block].end
        layer = net.get_submodule(end)
        masks[end] = {n: torch.zeros_like(p) for n, p in layer.named_parameters(recurse=False)}
    return masks


def masked(net, masks):
    net = copy.deepcopy(net)
    with torch.no_grad():
        for module, targets in masks.items():
            for target, mask in targets.items():
                getattr(net.get_submodule(module), target).mul_(mask)
    return net


def assert_equal(small, dense, masks, example=X):
    x = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    expected, got = (m.double().eval()(x) for m in (masked(dense, masks), small))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_every_block_of_a_network_may_go(name):
    net = lively(NETS[name]()).eval()
    branches = [b for b in find_branches(trace(net, X)) if "downsample" not in b.end]
    blocks = list(dict.fromkeys(b.block for b in branches if "shortcut" not in b.end))
    assert len(blocks) > 8
    masks = masks_without(net, *blocks)
    dense, before = copy.deepcopy(net), count(net, X)
    speedup = ModelSpeedup(net, X, masks)
    small = speedup.speedup_model()
    assert all(type(small.get_submodule(block)) is nn.Sequential for block in blocks)
    assert_equal(copy.deepcopy(small), dense, masks)
    assert count(small, X).macs < 0.6 * before.macs
    notes = [note for note in speedup.report().notes if "its branch is masked" in note]
    assert len(notes) == len(blocks)


def test_one_block_and_its_neighbours():
    net = lively(create_model("resnet20", shortcut="B")).eval()
    masks = masks_without(net, "layer2.0", "layer3.1")
    half = torch.ones(16, 16, 3, 3)
    half[:8] = 0
    masks["layer1.0.conv1"] = {"weight": half}
    masks["layer1.0.bn1"] = dict.fromkeys(("weight", "bias"), half[:, 0, 0, 0])
    dense = copy.deepcopy(net)
    speedup = ModelSpeedup(net, X, masks)
    small = speedup.speedup_model()
    assert steps_of(small.layer2[0]) == ["shortcut", "nn.ReLU"]
    assert [name for name, _ in small.layer2[0].named_children()] == ["shortcut", "step1"]
    assert steps_of(small.layer3[1]) == ["nn.ReLU"]
    assert small.layer1[0].conv1.out_channels == 8
    assert_equal(copy.deepcopy(small), dense, masks)
    rows = {row.name: row for row in speedup.report().layers}
    gone = rows["layer3.1.conv1"]
    assert (gone.type, gone.before, gone.after, gone.removed) == ("Conv2d", (64, 64), (0, 0), 64)
    assert rows["layer2.0.shortcut.0"].removed == 0


def test_the_shortcut_may_die_instead():
    net = lively(create_model("resnet20", shortcut="B")).eval()
    masks = masks_without(net, "layer2.0", downsample=True)
    dense = copy.deepcopy(net)
    small = ModelSpeedup(net, X, masks).speedup_model()
    steps = ["conv1", "bn1", "nn.ReLU", "conv2", "bn2", "nn.ReLU"]
    assert steps_of(small.layer2[0]) == steps
    assert_equal(small, dense, masks)


def test_a_branch_that_adds_a_constant_stays():
    """Its norm would go on adding its shift."""
    net = lively(create_model("resnet20")).eval()
    masks = masks_without(net, "layer1.1")
    del masks["layer1.1.bn2"]
    dense = copy.deepcopy(net)
    speedup = ModelSpeedup(net, X, masks)
    small = speedup.speedup_model()
    assert small.layer1[1].conv1.out_channels == 1
    assert any("one channel stays" in note for note in speedup.report().notes)
    assert_equal(small, dense, masks)


def small_resnet():
    net = lively(create_model("resnet20", shortcut="B")).eval()
    masks = masks_without(net, "layer2.0", "layer3.1", "layer3.2")
    return ModelSpeedup(net, X, masks).speedup_model()


class TestFiles:
    def test_bits_come_back(self, tmp_path):
        small = small_resnet()
        save_compact(small, tmp_path / "m.safetensors")
        again = load_compact(
            tmp_path / "m.safetensors", lambda: create_model("resnet20", shortcut="B")
        )
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(again(x), small(x))
        assert plan_of(again) == plan_of(small)
        assert plan_of(small)["blocks"]["layer3.1"] == ["nn.ReLU"]

    @pytest.mark.slow
    def test_another_architecture_is_refused(self):
        plan = plan_of(small_resnet())
        with pytest.raises(CheckpointError, match=r"Sequential has no block 'layer2.0' with sh"):
            rebuild(create_model("resnet20").layer1, plan)
        with pytest.raises(CheckpointError, match="of another architecture"):
            rebuild(create_model("preresnet29"), plan)

    @pytest.mark.slow
    def test_it_can_be_trained_from_scratch(self):
        net = rebuild(create_model("resnet20", shortcut="B"), plan_of(small_resnet()))
        net.train()(torch.randn(4, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_it_is_made_smaller_again():
    small = small_resnet()
    dense = copy.deepcopy(small)
    masks = masks_without(small, "layer3.0")
    smaller = ModelSpeedup(small, X, masks).speedup_model()
    assert_equal(copy.deepcopy(smaller), dense, masks)
    assert set(plan_of(smaller)["blocks"]) == {"layer2.0", "layer3.0", "layer3.1", "layer3.2"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_goes_on(kind):
    net = lively(create_model("resnet20", shortcut="B"))
    masks = masks_without(net, "layer2.1")
    with torch.no_grad():
        net.load_state_dict(masked(net, masks).state_dict())
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(net.parameters(), lr=0.01, **more)
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    number = len(optimizer.param_groups[0]["params"])
    speedup = ModelSpeedup(net, X, masks)
    small = speedup.speedup_model()
    speedup.rebind_optimizer(optimizer)
    left = optimizer.param_groups[0]["params"]
    assert {id(p) for p in left} == {id(p) for p in small.parameters()}
    assert len(left) == number - 6
    assert {id(p) for p in optimizer.state} <= {id(p) for p in left}
    optimizer.zero_grad()
    small(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.head(F.relu(self.block(self.stem(x))))


class Asking(Net):
    """Asks more of its block than to be called."""

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.head(x if self.block.conv1.kernel_size == (3, 3) else -x)


class Twice(Net):
    def forward(self, x):
        return self.head(self.block(self.block(self.stem(x))))


class Keeping(Net):
    """Writes to what its block returns, and reads what it gave it."""

    def forward(self, x):
        x = self.stem(x)
        y = self.block(x)
        y.relu_()
        return self.head(x + y)


class Losing(Net):
    """Writes to what it gave its block, and reads what came back."""

    def forward(self, x):
        x = self.stem(x)
        y = self.block(x)
        x.relu_()
        return self.head(x + y)


class Scaled(Net):
    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.add(self.block(x), x, alpha=2))


BRANCH = ("conv1", "bn1", "conv2", "bn2")


def everything_masked(net):
    return {
        f"block.{name}": {
            n: torch.zeros_like(p) for n, p in getattr(net.block, name).named_parameters()
        }
        for name in BRANCH
    }


@pytest.mark.parametrize(
    ("kind", "goes"),
    [
        (Net, True),
        (Scaled, True),
        (Asking, False),
        (Twice, False),
        (Keeping, False),
        (Losing, False),
    ],
)
def test_only_a_block_that_is_called_and_no_more(kind, goes):
    net = lively(kind()).eval()
    masks = everything_masked(net)
    dense = copy.deepcopy(net)
    small = ModelSpeedup(net, X, masks).speedup_model()
    assert (steps_of(small.block) == []) == goes
    assert_equal(small, dense, masks)


def test_a_block_with_a_hook_stays():
    net = lively(Net()).eval()
    net.block.register_forward_hook(lambda module, args, output: output * 2)
    masks = everything_masked(net)
    small = ModelSpeedup(net, X, masks, verify=False).speedup_model()
    assert type(small.block) is Block


def test_frozen_parts_stay_frozen():
    net = lively(create_model("resnet20", shortcut="B")).train()
    net.layer2[0].shortcut[1].eval()
    masks = masks_without(net, "layer2.0")
    small = ModelSpeedup(net, X, masks).speedup_model()
    assert small.layer2[0].training
    assert not small.layer2[0].shortcut[1].training


@pytest.mark.slow
def test_training_goes_the_same_way():
    """In training mode too the small network is the masked one: the branch is zero there."""
    net = lively(create_model("resnet20", shortcut="B")).double().train()
    masks = masks_without(net, "layer2.0", "layer1.2")
    dense = masked(net, masks)
    small = ModelSpeedup(net, X.double(), masks).speedup_model()
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(small(x), dense(x), rtol=1e-9)
