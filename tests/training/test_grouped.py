"""Networks built with group convolutions: their counts, their weights, and mistakes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import write_group_config
from nni_gconv.profiling import count
from nni_gconv.training.zoo import ModelSettings, create_model
from nni_gconv.training.zoo.grouped import with_groups

IMAGENET = torch.zeros(1, 3, 224, 224)
STAGES = ("layer1.", "layer2.", "layer3.", "layer4.")


def convolutions(name):
    model = create_model(name)
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "conv1"]


def by_stage(name, counts, downsample):
    groups = {}
    for layer, _ in convolutions(name):
        stage = next(i for i, s in enumerate(STAGES) if layer.startswith(s))
        if stage in downsample or "downsample" not in layer:
            groups[layer] = counts[stage]
    return groups


def resnet34_a():
    return by_stage("torchvision:resnet34", (8, 4, 2, 1), downsample={1, 2})


def resnet34_b():
    return by_stage("torchvision:resnet34", (16, 8, 4, 2), downsample=())


def everywhere_2(name):
    return {layer: 2 for layer, _ in convolutions(name)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups", "params", "macs"),
    [
        ("torchvision:resnet34", resnet34_a, 17.36e6, 1.73e9),
        ("torchvision:resnet34", resnet34_b, 9.05e6, 0.94e9),
        ("torchvision:resnet50", lambda: everywhere_2("torchvision:resnet50"), 13.83e6, 2.10e9),
    ],
)
def test_published_configurations_have_the_published_size(name, groups, params, macs):
    found = count(create_model(name, group_config=groups()), IMAGENET)
    assert found.params == pytest.approx(params, abs=0.005e6)
    assert found.macs == pytest.approx(macs, abs=0.005e9)


@pytest.mark.slow
def test_a_depthwise_separable_resnet34_has_the_size_of_its_formula():
    """9 C + C F weights and as many multiply-accumulates a position, for each 3x3 convolution."""
    layers = [(n, m) for n, m in convolutions("torchvision:resnet34") if m.kernel_size == (3, 3)]
    assert len(layers) == 32
    groups = {name: conv.in_channels for name, conv in layers}
    model = create_model("torchvision:resnet34", group_config=groups, group_form="separable")
    dense = count(create_model("torchvision:resnet34"), IMAGENET)
    params, macs = dense
    shapes = [  # convolutions, C, F, positions of the output
        (6, 64, 64, 56), (1, 64, 128, 28), (7, 128, 128, 28), (1, 128, 256, 14),
        (11, 256, 256, 14), (1, 256, 512, 7), (5, 512, 512, 7),
    ]  # fmt: skip
    for number, channels, filters, side in shapes:
        saved = number * (9 * channels * filters - (9 * channels + channels * filters))
        params, macs = params - saved, macs - saved * side * side
    assert count(model, IMAGENET) == (params, macs)


def test_mobilenets_pointwise_convolutions_are_grouped_in_both_forms():
    dense = create_model("torchvision:mobilenet_v2")
    groups = {n: 4 for n, m in dense.named_modules() if isinstance(m, nn.Conv2d)
              and m.groups == 1 and m.in_channels >= 32}  # fmt: skip
    weights = sum(dense.get_submodule(n).weight.numel() for n in groups)
    for form in ("grouped", "separable"):
        model = create_model("torchvision:mobilenet_v2", group_config=groups, group_form=form)
        saved = sum(p.numel() for p in dense.parameters()) - sum(
            p.numel() for p in model.parameters()
        )
        assert saved == weights * 3 // 4


def product(pointwise, spatial):
    """Weight of the one convolution that two in a row are."""
    return torch.einsum("fm,mchw->fchw", pointwise[:, :, 0, 0], spatial)


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 1, "bias": False}, {"dilation": 2, "padding": "same"},
    {"padding": 2, "padding_mode": "reflect"},
])  # fmt: skip
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_a_layer_that_is_separable_is_separated_without_loss(groups, options):
    torch.manual_seed(0)
    spatial = nn.Conv2d(6, 6, (3, 5), groups=groups, bias=False).double()
    pointwise = nn.Conv2d(6, 12, 1).double()
    conv = nn.Conv2d(6, 12, (3, 5), **options).double()
    size = 6 // groups
    with torch.no_grad():
        for g in range(groups):
            own = slice(g * size, (g + 1) * size)
            conv.weight[:, own] = product(pointwise.weight[:, own], spatial.weight[own])
    model = nn.Sequential(conv, nn.Identity())
    x = torch.randn(2, 6, 12, 14, dtype=torch.float64)
    expected = model(x)
    found = with_groups(model, {"0": groups}, "separable")
    assert isinstance(found[0], nn.Sequential)
    torch.testing.assert_close(found(x), expected, rtol=1e-9, atol=1e-9)


def test_a_separation_is_the_nearest_there_is():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, bias=False).double()
    weight = conv.weight.detach().clone()
    found = with_groups(nn.Sequential(conv), {"0": 4}, "separable")[0]
    nearest = torch.einsum("fchw,cdhw->fchw", found.pointwise.weight, found.spatial.weight)
    error = (nearest - weight).square().sum()
    # Depthwise: one product of two vectors a channel; what is lost is the rest of its spectrum.
    spectrum = torch.linalg.svdvals(weight.transpose(0, 1).flatten(2))
    torch.testing.assert_close(error, spectrum[:, 1:].square().sum())


def test_grouped_weights_are_the_blocks_of_the_dense_ones_and_keep_their_scale():
    torch.manual_seed(0)
    dense = nn.Conv2d(64, 64, 3, padding=1)
    conv = with_groups(nn.Sequential(dense), {"0": 4})[0]
    torch.testing.assert_close(conv.weight[16:32], 2 * dense.weight[16:32, 16:32])
    torch.testing.assert_close(conv.bias, dense.bias)
    x = torch.randn(4, 64, 16, 16)
    with torch.no_grad():
        assert conv(x).std() == pytest.approx(dense(x).std().item(), rel=0.1)


def test_same_seed_same_network():
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        model = create_model("resnet8", group_config={"layer1.0.conv1": 4}, group_form="separable")
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_recipe_builds_it(tmp_path):
    path = write_group_config(tmp_path / "g.json", {"layer2.0.conv2": 8}, create_model("resnet8"))
    options = {"group_config": str(path), "width": 1.0}
    model = ModelSettings(name="resnet8", options=options).build()
    assert model.layer2[0].conv2.groups == 8
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_layer_with_two_names_is_replaced_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(4, 4, 1)
            self.second = self.first

    model = with_groups(Twice(), {"first": 2})
    assert model.first is model.second
    assert model.first.groups == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_config": {"layer1.0.conv9": 2}}, "model.options.group_config: 'layer1.0.conv9': "
         "the model has no such layer; did you mean 'layer1.0.conv2'"),
        ({"group_config": {"layer1.0.conv1": 3}}, "3 groups do not divide 16 filters"),
        ({"group_config": {"layer1.0.conv1": 2}, "group_form": "seperable"},
         "model.options.group_form: unknown form 'seperable'; did you mean 'separable'"),
        ({"group_config": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(options, said):
    with pytest.raises(ConfigError) as caught:
        ModelSettings(name="resnet8", options=options).build()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
