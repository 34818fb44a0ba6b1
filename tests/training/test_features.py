"""Feature maps teach: which channels are whose, the loss, resuming, and what is refused."""

import copy

import pytest
import torch
from pruning_nets import randomised
from pydantic import ValidationError
from tiny_recipes import tiny
from torch import nn
from training_nets import same_weights, synthetic

from nni_gconv import FPGMPruner, GroupConvPruner, ModelSpeedup
from nni_gconv.errors import ConfigError
from nni_gconv.recipe import run_recipe
from nni_gconv.recipe.schema import Recipe
from nni_gconv.training import engine
from nni_gconv.training.features import FeatureTeacher, common_maps, feature_loss, recorded
from nni_gconv.training.loop import fit
from nni_gconv.training.settings import TrainSettings
from nni_gconv.training.zoo import create_model

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ALL = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
NO_GRAD = torch.no_grad()
GROUPS = [{"op_types": ["Conv2d"], "num_groups": 4}]


def residual():
    return randomised(create_model("resnet8", num_classes=4, width=0.5)).eval()


def plain():
    layers = [(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in PLAIN]
    flat = [layer for three in layers for layer in three]
    return randomised(nn.Sequential(*flat, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))


PLAIN = ((3, 8), (8, 8), (8, 12), (12, 6))


def cut(net, kind):
    """The small network, and the masked one it was made from."""
    pruner = (
        FPGMPruner(net, ALL, dummy_input=X) if kind == "cut"
        else GroupConvPruner(net, GROUPS, dummy_input=X, restarts=0)
    )  # fmt: skip
    _, masks = pruner.compress()
    pruner.unwrap_model()
    masked = copy.deepcopy(net)
    speedup = ModelSpeedup(net, X, masks)
    small = speedup.speedup_model().eval()
    speedup.mask(masked)
    return small, masked.eval(), masks


@pytest.mark.parametrize("kind", ["cut", pytest.param("groups", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [residual, plain])
def test_channels_are_found_wherever_they_went(make, kind):
    small, masked, _ = cut(make(), kind)
    common = common_maps(small, masked, X)
    assert len(common) >= 4
    other = torch.randn(3, 3, 8, 8)
    with recorded(small, common) as ours, recorded(masked, common) as theirs, torch.no_grad():
        small(other), masked(other)
    for name, (own, same) in common.items():
        assert len(own) == len(same.unique()) > 0
        assert torch.allclose(ours[name][:, own], theirs[name][:, same], atol=1e-4)
    assert float(feature_loss(ours, theirs, common)) < 1e-8


def test_channels_are_those_that_the_masks_keep():
    small, masked, masks = cut(plain(), "cut")
    for name, (own, same) in common_maps(small, masked, X).items():
        kept = masks[str(int(name) - 1)]["weight"].flatten(1).any(1).nonzero().flatten()
        assert own.tolist() == list(range(len(kept)))
        assert same.tolist() == kept.tolist()


def test_channels_that_are_alike_are_left_out():
    net = plain()
    with torch.no_grad():
        for twin in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
            twin[1] = twin[0]
        net[1].running_mean[1], net[1].running_var[1] = (
            net[1].running_mean[0],
            net[1].running_var[0],
        )
    own, same = common_maps(net.eval(), copy.deepcopy(net), X)["1"]
    assert own.tolist() == same.tolist() == list(range(2, 8))


def test_the_loss_is_a_mean_of_relative_distances():
    generator = torch.Generator().manual_seed(0)
    ours = {"a": torch.randn(2, 3, 4, 4, generator=generator), "b": torch.randn(2, 2, 2, 2)}
    theirs = {"a": torch.randn(2, 5, 4, 4, generator=generator), "b": torch.randn(2, 2, 2, 2)}
    common = {
        "a": (torch.tensor([0, 2]), torch.tensor([4, 1])),
        "b": (torch.tensor([0, 1]), torch.tensor([0, 1])),
    }
    parts = []
    for name, (own, same) in common.items():
        apart = size = 0.0
        for i, j in zip(own, same, strict=True):
            apart += float(((ours[name][:, i] - theirs[name][:, j]) ** 2).sum())
            size += float((theirs[name][:, j] ** 2).sum())
        parts.append(apart / size)
    assert float(feature_loss(ours, theirs, common)) == pytest.approx(sum(parts) / 2, rel=1e-5)


@pytest.mark.slow
def test_maps_come_nearer_to_the_teacher_s(tmp_path):
    dense = create_model("resnet8", num_classes=4, width=0.5).eval()
    small, masked, _ = cut(copy.deepcopy(dense), "cut")
    common, apart = common_maps(small, masked, X), {}
    for features in (0.0, 5.0):
        net = copy.deepcopy(small)
        settings = TrainSettings(
            epochs=4, optimizer={"lr": 0.01}, keep="last",
            distill={"features": features, "features_epochs": 100},
        )  # fmt: skip
        teacher = FeatureTeacher(dense, common) if features else dense
        fit(net, synthetic(), settings, directory=tmp_path, device="cpu", progress=False,
            teacher=teacher)  # fmt: skip
        images = next(iter(synthetic().val))[0]
        with recorded(net.eval(), common) as ours, recorded(dense, common) as theirs, NO_GRAD:
            net(images), dense(images)
        apart[features] = float(feature_loss(ours, theirs, common))
        assert not any(module._forward_hooks for module in net.modules())
    assert apart[5.0] < 0.9 * apart[0.0]


def test_maps_count_less_from_step_to_step(tmp_path, monkeypatch):
    """Of three epochs in one and a half: weights fall in a line, and then there are no maps."""
    dense = create_model("resnet8", num_classes=4, width=0.5).eval()
    net, parts, losses = copy.deepcopy(dense), [], []
    teacher = FeatureTeacher(dense, common_maps(net, dense, X))
    real = engine.feature_loss, engine.distillation_loss

    def maps(*given):
        parts.append(teacher.share)
        return real[0](*given)

    def logits(*given):
        losses.append(None)
        return real[1](*given)

    monkeypatch.setattr(engine, "feature_loss", maps)
    monkeypatch.setattr(engine, "distillation_loss", logits)
    distill = {"features": 5, "features_epochs": 1.5}
    fit(net, synthetic(), TrainSettings(epochs=3, distill=distill), directory=tmp_path,
        device="cpu", progress=False, teacher=teacher)  # fmt: skip
    steps = len(synthetic().train)
    assert len(losses) == 3 * steps
    first = [1 - step / steps / 1.5 for step in range(3 * steps)]
    assert parts == pytest.approx([share for share in first if share > 0])


@pytest.mark.slow
def test_a_recipe_learns_from_maps_and_goes_on_with_them(tmp_path):
    recipe = tiny(finetune={"epochs": 2, "distill": {"features": 20}})
    whole = run_recipe(recipe, output=tmp_path / "whole", quiet=True)
    again = run_recipe(recipe, output=tmp_path / "again", quiet=True)
    plain = tiny(finetune={"epochs": 2, "distill": {}})
    other = run_recipe(plain, output=tmp_path / "other", quiet=True)
    one, two, three = (
        torch.load(r.output / "finetune" / "checkpoint.pt", weights_only=True)["model"]
        for r in (whole, again, other)
    )
    assert same_weights(one, two)
    assert not same_weights(one, three)


@pytest.mark.parametrize(
    ("features", "wrap", "said"),
    [(10, False, r"distill.features: needs teacher=FeatureTeacher"), (0, True, "needs features")],
)
def test_what_does_not_go_together(tmp_path, features, wrap, said):
    dense = residual()
    net = copy.deepcopy(dense)
    teacher = FeatureTeacher(dense, common_maps(net, dense, X)) if wrap else dense
    with pytest.raises(ConfigError, match=said):
        fit(net, synthetic(), TrainSettings(epochs=1, distill={"features": features}),
            directory=tmp_path, device="cpu", progress=False, teacher=teacher)  # fmt: skip


def test_another_network_has_no_map_in_common():
    with pytest.raises(ConfigError, match="no feature map is that of the masked network"):
        common_maps(residual(), create_model("resnet8", num_classes=4, width=0.5), X)


def test_maps_teach_in_finetune_alone():
    weights = {"name": "resnet8", "weights": "w.safetensors"}
    taught = {"distill": {"features": 1}}
    with pytest.raises(ValidationError, match="feature maps teach in finetune alone"):
        Recipe(model=weights, data={"name": "digits"}, sparsify=taught,
               prune={"method": "slimming", "budget": {"macs": 0.5}})  # fmt: skip
    with pytest.raises(ValidationError, match="needs a prune section"):
        Recipe(model=weights, data={"name": "digits"}, finetune=taught)
