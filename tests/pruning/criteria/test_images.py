"""What criteria that look at images ask for, and that they leave the network as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from mask_tools import alive, seeded
from pruner_cases import mean_loss
from pruning_nets import conv, plain_net, randomised
from torch import nn
from torch.nn import functional as F

from nni_gconv.errors import ConfigError, DataError
from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.criteria import (
    ActivationPruner,
    FisherPruner,
    HessianPruner,
    MagnitudePruner,
    TaylorPruner,
)
from nni_gconv.pruning.methods.gconv import GroupConvPruner
from nni_gconv.pruning.registry import find_method
from nni_gconv.pruning.settings import PruneSettings
from nni_gconv.training.zoo import create_model

HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
CONVS = [{"op_types": ["Conv2d"]}]
GRADIENTS = [TaylorPruner, FisherPruner, HessianPruner]
KINDS = [*GRADIENTS, ActivationPruner]


def images(count=6, size=8, classes=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % classes


def made(kind, net, calibration=None, config_list=HALF, **options):
    given = [images()] if calibration is None else calibration
    x = torch.zeros(1, 3, 8, 8, dtype=next(net.parameters()).dtype)
    return kind(net, config_list, dummy_input=x, calibration=given, **options)


@pytest.mark.parametrize("kind", KINDS)
class TestNothingChanges:
    def test_weights_gradients_modes_buffers_and_random_numbers(self, kind):
        net = randomised(seeded(plain_net)).train()
        net[2].weight.requires_grad_(False)
        net[0].weight.grad = torch.ones_like(net[0].weight)
        net.insert(1, nn.Dropout(0.5))
        net.eval()
        net[0].train()
        before = copy.deepcopy(net.state_dict())
        modes = [m.training for m in net.modules()]
        flags = {n: p.requires_grad for n, p in net.named_parameters()}
        pruner = made(kind, net)
        hooks = [len(m._forward_hooks) for m in net.modules()]
        state = torch.get_rng_state()
        pruner.requests()
        assert torch.equal(state, torch.get_rng_state())
        assert hooks == [len(m._forward_hooks) for m in net.modules()]
        pruner.unwrap_model()
        assert modes == [m.training for m in net.modules()]
        assert flags == {n: p.requires_grad for n, p in net.named_parameters()}
        after = net.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[k], after[k]) for k in before)

    def test_gradients_stay(self, kind):
        net = seeded(plain_net)
        pruner = made(kind, net)
        mean_loss(net(images()[0]), images()[1]).backward()
        before = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        assert before
        pruner.requests()
        after = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        assert list(before) == list(after)
        assert all(torch.equal(before[n], after[n]) for n in before)

    def test_a_failing_pass_leaves_the_network_too(self, kind):
        net = seeded(plain_net)
        before = copy.deepcopy(net.state_dict())
        pruner = made(kind, net, [images(size=5)])
        said = r"calibration: the model does not run on images of shape \(3, 5, 5\)"
        net[5] = nn.Identity()  # what is read by the head no longer fits
        with pytest.raises(DataError, match=said):
            pruner.requests()
        assert all(p.requires_grad for p in net.parameters())
        assert all(len(m._forward_hooks) == 0 for m in net.modules())
        pruner.unwrap_model()
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())

    def test_batches_do_not_matter(self, kind):
        found = []
        for size in (2, 4, 6):
            net = randomised(seeded(plain_net)).double()
            pruner = made(kind, net, Calibration([images()], batch_size=size))
            found.append([r.scores for r in pruner.requests()])
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                assert a == pytest.approx(b, rel=1e-5)

    def test_wrapped_and_masked_networks_are_looked_at_as_they_are(self, kind):
        """A channel that is masked already is worth nothing to a loss."""
        pruner = made(kind, randomised(seeded(plain_net)))
        _, masks = pruner.compress()
        gone = ~alive(masks["2"]["weight"])
        scores = pruner.requests()[1].scores
        if kind is not ActivationPruner:
            assert (scores[gone.numpy()] == 0).all()
            assert (scores[~gone.numpy()] > 0).all()

    def test_masks_given_act_in_the_passes(self, kind):
        net = seeded(lambda: create_model("resnet8b", width=0.5)).double()
        grouped = GroupConvPruner(
            net, [{"op_names": ["layer1.0.conv2"], "num_groups": 2}],
            dummy_input=torch.zeros(1, 3, 8, 8, dtype=torch.float64),
        )  # fmt: skip
        _, masks = grouped.compress()
        grouped.unwrap_model()
        masked = copy.deepcopy(net)
        masked.layer1[0].conv2.weight.data *= masks["layer1.0.conv2"]["weight"]
        config_list = [{"op_names": ["layer2.0.conv1"], "sparse_ratio": 0.5}]
        options = {"config_list": config_list, "masks": masks}
        with_masks, without = (
            made(kind, n, **o).requests()[0].scores
            for n, o in ((net, options), (masked, {"config_list": config_list}))
        )
        assert with_masks == pytest.approx(without, rel=1e-9)
        other = seeded(lambda: create_model("resnet8b", width=0.5)).double()
        dense = made(kind, other, config_list=config_list).requests()[0].scores
        assert with_masks != pytest.approx(dense, rel=1e-3)

    def test_frozen_weights_are_scored(self, kind):
        net = randomised(seeded(plain_net))
        expected = [r.scores for r in made(kind, copy.deepcopy(net)).requests()]
        found = [r.scores for r in made(kind, net.requires_grad_(False)).requests()]
        assert all((a == b).all() for a, b in zip(expected, found, strict=True))

    def test_dead_channels_go_first(self, kind):
        net = randomised(seeded(plain_net))
        for tensor in (net[0].weight, net[0].bias, net[2].weight):
            tensor.data[3:5] = 0
        pruner = made(kind, net)
        _, masks = pruner.compress()
        assert not alive(masks["0"]["weight"])[3:5].any()
        assert not alive(masks["2"]["weight"])[3:5].any()
        assert int(alive(masks["0"]["weight"]).sum()) == 6

    def test_the_dead_network_has_scores(self, kind):
        net = seeded(plain_net)
        for parameter in net.parameters():
            parameter.data.zero_()
        pruner = made(kind, net, reduction="prod", ranking="global")
        assert all((r.scores == 0).all() for r in pruner.requests())
        assert int(alive(pruner.compress()[1]["0"]["weight"]).sum()) >= 1


@pytest.mark.parametrize("kind", KINDS)
class TestBadInput:
    def test_no_images(self, kind):
        net = seeded(plain_net)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(ConfigError, match=r"^calibration: \w+ looks at images: give cal") as e:
            kind(net, HALF, dummy_input=torch.zeros(1, 3, 8, 8))
        assert "\n" not in str(e.value)
        assert list(net.state_dict()) == list(before)

    def test_a_tensor_and_a_loader_are_images(self, kind):
        x, y = images()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
        assert len(made(kind, seeded(plain_net), loader).images) == 6
        if kind is ActivationPruner:
            assert len(made(kind, seeded(plain_net), x).images) == 6
        else:
            with pytest.raises(ConfigError, match=r"calibration: \w+ needs labels: give batches"):
                made(kind, seeded(plain_net), x)

    def test_numbers_that_are_not_finite(self, kind):
        net = seeded(plain_net)
        net[0].weight.data[0, 0, 0, 0] = torch.nan
        with pytest.raises(DataError, match="that are not finite"):
            made(kind, net).compress()

    def test_a_recipe_names_it(self, kind):
        name = kind.name
        assert find_method(name).kind is kind
        PruneSettings(method=name, budget={"macs": 0.5}, options={"ranking": "isomorphic"})
        with pytest.raises(ConfigError, match=r"prune\.options: unknown option 'loss'"):
            find_method(name).check({"loss": "mse"})
        with pytest.raises(ConfigError, match=r"reduction.*'median'.*allowed: sum, mean, max"):
            find_method(name).check({"reduction": "median"})
        with pytest.raises(ConfigError, match="reduction: under coupling union each layer votes"):
            find_method(name).check({"reduction": "max", "coupling": "union"})


@pytest.mark.parametrize("kind", GRADIENTS)
class TestLoss:
    def test_labels_out_of_range(self, kind):
        x, y = images()
        with pytest.raises(DataError, match="labels must be whole numbers from 0 to 3"):
            made(kind, seeded(plain_net), [(x, y + 1)]).compress()

    def test_outputs_that_are_no_classes(self, kind):
        net = seeded(lambda: nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 2)))
        with pytest.raises(ConfigError, match=r"loss: cross entropy takes .* give loss="):
            made(kind, net).compress()

    def test_no_function(self, kind):
        with pytest.raises(ConfigError, match="loss: 'mse' is not allowed"):
            made(kind, seeded(plain_net), loss="mse")

    def test_a_loss_of_something_else(self, kind):
        with pytest.raises(ConfigError, match="loss: does not depend on the network's outputs"):
            made(kind, seeded(plain_net), loss=lambda _, y: y.double().mean()).compress()

    def test_means_and_single_numbers_are_the_same(self, kind):
        found = []
        for reduction in ("mean", "none"):
            net = randomised(seeded(plain_net)).double()

            def loss(outputs, labels, reduction=reduction):
                return F.cross_entropy(outputs, labels, reduction=reduction)

            found.append([r.scores for r in made(kind, net, loss=loss).requests()])
        default = made(kind, randomised(seeded(plain_net)).double()).requests()
        for a, b, c in zip(*found, default, strict=True):
            assert a == pytest.approx(b)
            assert a == pytest.approx(c.scores)


class TestSamples:
    @pytest.mark.parametrize("kind", [FisherPruner, HessianPruner])
    def test_a_layer_that_sees_parts_of_images(self, kind):
        class Cut(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.inner = conv(3, 6), conv(6, 6)
                self.head = nn.Linear(6, 4)

            def forward(self, x):
                x = self.stem(x).relu()
                x = torch.cat([x[..., :4], x[..., 4:]])
                return self.head(sum(self.inner(x).relu().mean((2, 3)).chunk(2)))

        config = [{"op_names": ["inner"], "sparse_ratio": 0.5}]
        with pytest.raises(ConfigError, match=f"{kind.name} cannot tell images apart in inner"):
            made(kind, seeded(Cut), config_list=config).compress()
        made(TaylorPruner, seeded(Cut), config_list=config).compress()


class TestRanking:
    def widths(self, **options):
        net = randomised(seeded(lambda: create_model("resnet14", shortcut="B", width=0.5)))
        pruner = MagnitudePruner(net, dummy_input=torch.zeros(1, 3, 32, 32), **options)
        _, masks = pruner.compress()
        inner = [n for n in masks if n.endswith("conv1") and "layer" in n]
        return {n: int(alive(masks[n]["weight"]).sum()) for n in inner}, masks, pruner

    @pytest.mark.slow
    def test_sets_of_one_shape_compete(self):
        inner = [{"op_names_re": [r"layer\d\.\d\.conv1"], "sparse_ratio": 0.5}]
        uniform, masks, pruner = self.widths(config_list=inner)
        assert all(n == alive(masks[name]["weight"]).numel() // 2 for name, n in uniform.items())
        isomorphic, _, pruner = self.widths(config_list=inner, ranking="isomorphic")
        shapes = {}
        for name, kept in isomorphic.items():
            module = pruner.coupling.graph.modules[name]
            key = (module.in_channels, module.out_channels)
            shapes.setdefault(key, []).append((kept, module.out_channels))
        assert len(shapes) == 5
        for sets in shapes.values():
            assert sum(k for k, _ in sets) == sum(n for _, n in sets) // 2
        assert isomorphic != uniform
        everything, _, _ = self.widths(config_list=inner, ranking="global")
        assert sum(everything.values()) == sum(uniform.values())
        by_id, _, _ = self.widths(config_list=[{**inner[0], "global_group_id": 1}])
        assert everything == by_id
        assert everything != isomorphic

    @pytest.mark.slow
    def test_under_a_budget(self):
        options = {"config_list": CONVS, "budget": {"macs": 0.5}}
        found = [self.widths(**options, ranking=r)[0] for r in ("uniform", "global", "isomorphic")]
        assert found[0] == self.widths(**options)[0]
        assert len({tuple(f.values()) for f in found}) == 3

    def test_two_words_for_one_thing(self):
        config = [{**HALF[0], "global_group_id": 1}]
        net = seeded(plain_net)
        with pytest.raises(ConfigError, match="ranking: 0 has a global_group_id too"):
            MagnitudePruner(net, config, dummy_input=torch.zeros(1, 3, 8, 8), ranking="global")
        assert "0.weight" in net.state_dict()  # given back

    def test_one_goal_for_those_ranked_together(self):
        config = [*HALF, {"op_names": ["2"], "sparse_ratio": 0.25}]
        with pytest.raises(ConfigError, match=r"0 and 2 .* differs \(0\.5 and 0\.25\)"):
            MagnitudePruner(
                seeded(plain_net), config, dummy_input=torch.zeros(1, 3, 8, 8), ranking="global"
            )
