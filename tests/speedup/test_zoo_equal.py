"""Every network of the zoo, and torchvision's, gives the same numbers when it is small."""

import pytest
import torch
import torchvision
from speedup_tools import (
    assert_same_outputs,
    filter_masks,
    masked,
    outputs_of,
    randn,
    randomise,
    shrink,
    zeroing_masks,
)
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.graph import Coupling
from nni_gconv.training.zoo import create_model, list_models

ZOO = {
    "resnet20": {"width": 0.5},
    "resnet20b": {"width": 0.5},
    "cifar_resnet18": {},
    "preresnet11": {"width": 0.5},
    "vgg11": {"width": 0.125},
    "vgg16": {"width": 0.125, "last_pool": "max"},
    "densenet40": {"width": 0.5},
    "condensenet86": {"stages": (2, 2, 2), "width": 0.5},
}
TORCHVISION = {
    "resnet18": ({}, 32),
    "resnet50": ({"width_per_group": 16}, 32),
    "resnext50_32x4d": ({"layers": [2, 2, 1, 1]}, 32),
    "wide_resnet50_2": ({"layers": [1, 1, 1, 1]}, 32),
    "vgg11_bn": ({"widths": "A"}, 32),
    "vgg16": ({"widths": "D"}, 32),
    "mobilenet_v2": ({"width_mult": 0.5}, 32),
    "mobilenet_v3_small": ({}, 32),
    "densenet121": ({"block_config": (3, 2, 2, 2)}, 32),
    "squeezenet1_1": ({}, 32),
    "shufflenet_v2_x0_5": ({}, 32),
    "googlenet": ({"aux_logits": False}, 64),
    "mnasnet0_5": ({}, 32),
}


#: The largest take longest.
NAMES = [
    pytest.param(n, marks=[pytest.mark.slow] * (n in ("cifar_resnet18", "densenet40"))) for n in ZOO
]


def zoo_net(name):
    options = dict(ZOO[name])
    if name == "condensenet86":
        name = "condensenet"
    return randomise(create_model(name, **options)), randn(2, 3, 16, 16)


def torchvision_net(name):
    options, pixels = TORCHVISION[name]
    torch.manual_seed(0)
    models = torchvision.models
    if name == "googlenet":
        options = {**options, "init_weights": False}
    if "layers" in options:  # fewer blocks of the same kind, which saves time and no pattern
        width = {"width_per_group": 128} if "wide" in name else {"groups": 32, "width_per_group": 4}
        block = models.resnet.Bottleneck
        model = models.ResNet(block, options["layers"], num_classes=10, **width)
    elif "block_config" in options:
        model = models.DenseNet(num_classes=10, **options)
    elif "widths" in options:
        # As deep as published and a quarter as wide; the three dense layers are small ones.
        vgg = models.vgg
        quarter = [w if w == "M" else w // 4 for w in vgg.cfgs[options["widths"]]]
        features = vgg.make_layers(quarter, batch_norm=name.endswith("_bn"))
        with torch.device("meta"):
            model = vgg.VGG(features, init_weights=False)
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        model.classifier[0] = nn.Linear(128 * 4, 256)
        model.classifier[3] = nn.Linear(256, 64)
        model.classifier[6] = nn.Linear(64, 10)
    else:
        model = getattr(models, name)(num_classes=10, **options)
    return randomise(model), randn(1, 3, pixels, pixels)


def test_zoo_is_covered():
    families = {name.rstrip("0123456789b") for name in list_models()}
    assert families == {name.rstrip("0123456789b") for name in ZOO}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_zoo_zeroing_masks(name, share):
    model, dummy = zoo_net(name)
    masks = zeroing_masks(model, dummy, seed=1, share=share)
    shrink(model, dummy, masks, randn(3, 3, 20, 20, seed=5))
    model.train()
    model(randn(3, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_zoo_foreign_masks_fold(name):
    # Nothing but filters is masked: the reference is that, and nothing may be zeroed besides.
    model, dummy = zoo_net(name)
    shrink(model, dummy, filter_masks(model), constants="fold", smaller=True)


@pytest.mark.parametrize("name", NAMES)
def test_zoo_foreign_masks_silence(name):
    """Filters of whole coupled sets are masked: the result is that of the zeroing masks."""
    model, dummy = zoo_net(name)
    zeroing = zeroing_masks(model, dummy, seed=2)
    only_filters = {
        name: {"weight": targets["weight"]}
        for name, targets in zeroing.items()
        if isinstance(model.get_submodule(name), nn.Conv2d | nn.Linear)
    }
    expected = outputs_of(masked(model, zeroing), dummy)
    assert not torch.allclose(expected[0], outputs_of(masked(model, only_filters), dummy)[0])
    speedup = ModelSpeedup(model, dummy, only_filters, verify=False)
    assert_same_outputs(expected, outputs_of(speedup.speedup_model(), dummy))
    assert any("zeroed" in note for note in speedup.report().notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    model, dummy = torchvision_net(name)
    masks = zeroing_masks(model, dummy, seed=3, share=0.5)
    before = sum(p.numel() for p in model.parameters())
    shrink(model, dummy, masks)
    share = sum(p.numel() for p in model.parameters()) / before
    assert share < (0.8 if name in ("shufflenet_v2_x0_5",) else 0.55)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v2", "vgg11_bn"])
def test_torchvision_foreign_masks(name):
    model, dummy = torchvision_net(name)
    shrink(model, dummy, filter_masks(model), constants="fold")


def test_flags_and_grads_are_kept():
    model, dummy = zoo_net("resnet20")
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.layer2[0].bn1.bias.requires_grad_(False)
    masks = zeroing_masks(model, dummy)
    training = {n: m.training for n, m in model.named_modules()}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    ModelSpeedup(model, dummy, masks).speedup_model()
    assert {n: m.training for n, m in model.named_modules()} == training
    assert (
        {n for n, p in model.named_parameters() if not p.requires_grad}
        == frozen
        == {
            "conv1.weight",
            "layer2.0.bn1.bias",
        }
    )
    assert all(type(m).__module__.split(".")[0] in ("torch", "nni_gconv") for m in model.modules())


def test_half_the_network_is_gone_and_verified():
    model, dummy = zoo_net("vgg16")
    dense = sum(p.numel() for p in model.parameters())
    speedup = ModelSpeedup(model, dummy, zeroing_masks(model, dummy, share=0.5))
    small = speedup.speedup_model()
    assert sum(p.numel() for p in small.parameters()) < 0.3 * dense
    assert 0 <= speedup.report().difference < 1e-9
    layers = {row.name: row for row in speedup.report().layers}
    assert layers["features.0"].before == (8, 3)
    assert layers["features.0"].after == (4, 3)
    assert layers["features.0"].removed == 4
    assert layers["features.3"].after == (4, 4)
    assert Coupling.trace(small, dummy).sets[0].size == 4
