"""Block-diagonal masks become group convolutions that give the same numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from speedup_tools import assert_same_outputs, masked, outputs_of, randn, randomise, zeroing_masks
from torch import nn
from torch.fx import GraphModule

from nni_gconv import ModelSpeedup, export_model, load_compact, save_compact
from nni_gconv.groupconv.partition import Partition, fixed_pattern
from nni_gconv.training.zoo import create_model


def block_mask(weight, part):
    mask = torch.from_numpy(part.mask()).to(weight)
    return mask.view(*mask.shape, *[1] * (weight.dim() - 2)).expand_as(weight).clone()


def group_masks(model, counts, seed=0):
    """Masks of random partitions; `counts` maps a layer to G, or is one G for all it divides."""
    masks = {}
    for number, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, nn.modules.conv._ConvNd) or module.groups > 1:
            continue
        count = counts.get(name, 1) if isinstance(counts, dict) else counts
        sizes = module.out_channels, module.in_channels
        if count > 1 and not any(size % count for size in sizes):
            part = fixed_pattern(*sizes, count, "random", seed + number)
            masks[name] = {"weight": block_mask(module.weight, part)}
    return masks


def joined(first, second):
    """Both masks at once."""
    masks = {name: dict(targets) for name, targets in first.items()}
    for name, targets in second.items():
        for target, mask in targets.items():
            known = masks.setdefault(name, {})
            known[target] = known[target] * mask if target in known else mask
    return masks


def convert(model, dummy, masks, **options):
    """Speed up, judge, and return the ModelSpeedup."""
    expected = outputs_of(masked(model, masks), dummy)
    own = {type(module) for module in model.modules()}
    speedup = ModelSpeedup(model, dummy, masks, verify=False, **options)
    small = speedup.speedup_model()
    assert_same_outputs(expected, outputs_of(small, dummy))
    added = {type(module) for module in small.modules()} - own
    assert all(kind.__module__.startswith("torch.") for kind in added)
    return speedup


def changes(speedup):
    return {layer.name: layer for layer in speedup.report().layers}


class Residual(nn.Module):
    """Two bottlenecks on a stream."""

    def __init__(self, width=16, inner=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class TestLayers:
    def test_by_hand(self):
        # The vector of the group mask 0101/1010/0101/1010 with W[f, c] = 10 f + c.
        net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)).double()
        net[0].weight.data = torch.tensor(
            [[10.0 * f + c for c in range(4)] for f in range(4)], dtype=torch.float64
        ).view(4, 4, 1, 1)
        part = Partition([1, 0, 1, 0], [0, 1, 0, 1], retained=0)
        masks = {"0": {"weight": block_mask(net[0].weight, part)}}
        x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).view(1, 4, 1, 1)
        small = convert(net, x, masks)
        layer = small.model[0]
        assert layer.gather_in.index.tolist() == [0, 2, 1, 3]
        assert layer.gather_out.index.tolist() == [2, 0, 3, 1]
        assert layer.conv.groups == 2
        assert layer.conv.weight.flatten(1).tolist() == [[10, 12], [30, 32], [1, 3], [21, 23]]
        assert small.model(x).flatten().tolist() == [14, 46, 134, 126]

    @pytest.mark.parametrize(
        "options",
        [
            {"bias": False},
            {"stride": 2, "padding": 1},
            {"dilation": 2, "padding": 2},
            {"padding": "same", "padding_mode": "circular"},
            {"padding": (2, 1), "padding_mode": "reflect", "kernel_size": (5, 3)},
            {"kernel_size": (1, 3), "stride": (1, 2)},
        ],
    )
    def test_options_of_a_convolution_are_kept(self, options):
        layer = nn.Conv2d(8, 12, **{"kernel_size": 3, **options})
        net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer, nn.Conv2d(12, 2, 1)))
        speedup = convert(net, randn(2, 3, 9, 9), group_masks(net, {"2": 4}))
        assert speedup.report().gathers == 0  # both neighbours are dense and can be permuted
        assert (layer.groups, layer.weight.shape[1]) == (4, 2)
        assert layer.padding_mode == options.get("padding_mode", "zeros")

    @pytest.mark.parametrize(("kind", "rank"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
    def test_other_ranks(self, kind, rank):
        net = randomise(nn.Sequential(kind(3, 8, 1), kind(8, 8, 3, padding=1), kind(8, 2, 1)))
        convert(net, randn(2, 3, *[5] * rank), group_masks(net, {"1": 2}))
        assert net[1].groups == 2

    def test_depthwise_of_many_groups(self):
        net = randomise(nn.Sequential(nn.Conv2d(3, 300, 1), nn.Conv2d(300, 300, 3, padding=1)))
        speedup = convert(net, randn(1, 3, 5, 5), group_masks(net, {"1": 300}))
        assert changes(speedup)["1"].groups == 300
        assert speedup.report().gathers == 1  # the output of the model keeps its order

    def test_an_unbatched_input_passes_gathers(self):
        net = randomise(nn.Sequential(nn.Conv2d(4, 4, 1)))
        convert(net, randn(4, 5, 5), group_masks(net, 2))

    def test_a_layer_under_two_names_is_converted_under_both(self):
        layer = nn.Conv2d(8, 8, 3, padding=1)
        net = randomise(nn.Sequential(layer, nn.ReLU(), layer))
        convert(net, randn(1, 8, 5, 5), group_masks(net, {"0": 4}))
        assert net[0] is net[2]
        assert net[0].conv.groups == 4

    def test_a_weight_of_two_layers_stays_dense(self):
        net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        net[2].weight = net[0].weight
        net = randomise(net)
        convert(net, randn(1, 8, 5, 5), group_masks(net, {"0": 4}))
        assert net[0].groups == 1

    def test_a_forward_of_its_own_stays_dense(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return super().forward(x) * 2

        net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Doubled(8, 8, 1), nn.Conv2d(8, 2, 1)))
        expected = outputs_of(masked(net, masks := group_masks(net, {"1": 4})), randn(1, 3, 5, 5))
        ModelSpeedup(net, randn(1, 3, 5, 5), masks).speedup_model()
        assert_same_outputs(expected, outputs_of(net, randn(1, 3, 5, 5)))
        assert net[1].groups == 1

    def test_a_lone_convolution_has_no_place_for_gathers(self):
        net = randomise(nn.Conv2d(8, 8, 3))
        part = fixed_pattern(8, 8, 2, "random")
        masks = {"": {"weight": block_mask(net.weight, part)}}
        speedup = ModelSpeedup(net, randn(1, 8, 5, 5), masks)
        speedup.speedup_model()
        assert net.groups == 1
        assert "no place for a gather" in " ".join(speedup.report().notes)


class TestFurther:
    """Convolutions that have groups already, whose masks divide each of them."""

    @staticmethod
    def net(had=2, width=12, filters=8, **options):
        return randomise(
            nn.Sequential(
                nn.Conv2d(3, width, 1),
                nn.ReLU(),
                nn.Conv2d(width, filters, 3, groups=had, **options),
                nn.Conv2d(filters, 2, 1),
            )
        )

    @staticmethod
    def masks(weight, had, parts, seed=0):
        """Deal the filters and positions of each group out to `parts`, at random."""
        rng = np.random.default_rng(seed)
        rows, width = weight.shape[0] // had, weight.shape[1]
        made = []
        for count in parts:
            row = rng.permutation(np.arange(rows) % count)
            column = rng.permutation(np.arange(width) % count)
            made.append(row[:, None] == column[None, :])
        mask = torch.from_numpy(np.concatenate(made)).double()
        return {"2": {"weight": mask[..., None, None].expand_as(weight).clone()}}

    @pytest.mark.parametrize(("had", "parts"), [(2, (2, 2)), (4, (2,) * 4), (1, (4,)), (2, (3, 3))])
    @pytest.mark.parametrize("fold", [True, False])
    def test_each_group_is_divided(self, had, parts, fold):
        net = self.net(had, 24, 24)
        small = convert(
            net, randn(2, 3, 6, 6), self.masks(net[2].weight, had, parts), fold_permutations=fold
        )
        groups = had * parts[0]
        assert (net[2].groups if fold else small.model[2].conv.groups) == groups
        assert (small.report().gathers == 0) == fold

    def test_unequal_parts_are_divided_as_far_as_both_allow(self):
        net = self.net(2, 24, 24)
        convert(net, randn(2, 3, 6, 6), self.masks(net[2].weight, 2, (4, 2)))
        assert (net[2].groups, net[2].weight.shape[1]) == (4, 6)

    def test_one_group_that_is_whole_leaves_all_as_they_are(self):
        net = self.net(2, 24, 24)
        convert(net, randn(2, 3, 6, 6), self.masks(net[2].weight, 2, (2, 1)))
        assert net[2].groups == 2

    def test_with_channels_that_go(self):
        net = self.net(2, 24, 24)
        masks = self.masks(net[2].weight, 2, (2, 2))
        rows = masks["2"]["weight"].flatten(1)
        # One filter of each of the four groups.
        seen = {}
        for number, row in enumerate(rows.tolist()):
            seen.setdefault((number // 12, tuple(row)), number)
        masks["2"]["weight"][list(seen.values())] = 0
        masks["2"]["bias"] = torch.ones(24).index_fill(0, torch.tensor(list(seen.values())), 0)
        convert(net, randn(2, 3, 6, 6), masks)
        assert (net[2].groups, net[2].out_channels, net[3].in_channels) == (4, 20, 20)


class TestOrder:
    def test_layers_that_split_alike_need_no_gather(self):
        net = randomise(nn.Sequential(*[nn.Conv2d(8, 8, 1) for _ in range(4)]))
        rows, columns = ([0, 1, 2, 3, 3, 2, 1, 0], [1, 0, 0, 1, 2, 2, 3, 3])
        parts = {
            "1": Partition(rows, columns, retained=0),
            # The same sets of channels by other numbers.
            "2": Partition(columns, [3 - r for r in rows], retained=0),
        }
        masks = {n: {"weight": block_mask(net[int(n)].weight, p)} for n, p in parts.items()}
        speedup = convert(net, randn(1, 8, 3, 3), masks)
        assert net[1].groups == net[2].groups == 4
        assert speedup.report().gathers == 0

    def test_finer_groups_inside_coarser_ones_need_no_gather(self):
        net = randomise(nn.Sequential(*[nn.Conv2d(8, 8, 1) for _ in range(4)]))
        fine = [0, 2, 1, 3, 2, 0, 3, 1]
        parts = {
            "1": Partition(fine, [0, 1, 2, 3] * 2, retained=0),
            "2": Partition([0, 1] * 4, [g // 2 for g in fine], retained=0),
        }
        masks = {n: {"weight": block_mask(net[int(n)].weight, p)} for n, p in parts.items()}
        speedup = convert(net, randn(1, 8, 3, 3), masks)
        assert (net[1].groups, net[2].groups) == (4, 2)
        assert speedup.report().gathers == 0

    def test_one_gather_between_two_that_split_differently(self):
        net = randomise(nn.Sequential(*[nn.Conv2d(8, 8, 1) for _ in range(4)]))
        speedup = convert(net, randn(1, 8, 3, 3), group_masks(net, {"1": 4, "2": 4}))
        assert speedup.report().gathers == 1

    def test_a_stream_takes_the_order_of_most(self):
        net = randomise(Residual())
        part = fixed_pattern(16, 8, 4, "random", 3)
        writers = ("blocks.0.6", "blocks.1.6")
        masks = group_masks(net, {"blocks.0.0": 4, "blocks.1.0": 4})
        for name in writers:
            weight = net.get_submodule(name).weight
            masks[name] = {"weight": block_mask(weight, part)}
        speedup = convert(net, randn(2, 3, 7, 7), masks)
        gathers = {name: layer.gathers for name, layer in changes(speedup).items()}
        assert [gathers[name] for name in writers] == [0, 0]
        assert gathers["blocks.0.0"] == gathers["blocks.1.0"] == 1

    @pytest.mark.parametrize("fold", [True, False])
    def test_every_layer_by_itself(self, fold):
        net = randomise(Residual())
        speedup = convert(net, randn(2, 3, 7, 7), group_masks(net, 4), fold_permutations=fold)
        groups = {layer.groups for layer in changes(speedup).values() if layer.before == (8, 8)}
        assert groups == {4}
        gathers = speedup.report().gathers
        # Six layers; two write a stream that cannot stand in the order of both.
        assert gathers == 7 if fold else gathers > 9

    def test_a_gather_is_a_plain_torch_module(self):
        net = randomise(nn.Sequential(nn.Conv2d(4, 4, 1)))
        convert(net, randn(1, 4, 5, 5), group_masks(net, 2))
        assert isinstance(net[0], nn.Sequential)
        assert isinstance(net[0].gather_in, GraphModule)


class TestTogetherWithChannels:
    @pytest.mark.parametrize("seed", range(5))
    def test_channels_that_go_leave_groups_equally_wide(self, seed):
        net = randomise(Residual())
        dummy = randn(2, 3, 7, 7)
        masks = joined(zeroing_masks(net, dummy, seed), group_masks(net, {"blocks.0.3": 2}, seed))
        speedup = convert(net, dummy, masks)
        layer = changes(speedup)["blocks.0.3"]
        assert layer.groups == 2
        assert layer.after[0] < 8

    def test_as_many_from_each_group_all_go(self):
        net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)))
        part = fixed_pattern(8, 8, 2, "random")
        masks = {"1": {"weight": block_mask(net[1].weight, part)}}
        gone = [int((part.row_groups == g).nonzero()[0][0]) for g in range(2)]
        masks["1"]["weight"][gone] = 0
        masks["1"]["bias"] = torch.ones(8, dtype=torch.float64)
        masks["1"]["bias"][gone] = 0
        convert(net, randn(1, 3, 4, 4), masks)
        assert tuple(net[1].weight.shape[:2]) == (6, 4)
        assert net[1].groups == 2

    @pytest.mark.parametrize("name", ["resnet8", "preresnet11", "densenet10", "vgg11"])
    def test_the_zoo(self, name):
        torch.manual_seed(0)
        net = randomise(create_model(name, **({"width": 0.25} if name == "vgg11" else {})))
        dummy = randn(1, 3, 32, 32)
        masks = joined(zeroing_masks(net, dummy, 1), group_masks(net, 4))
        speedup = convert(net, dummy, masks)
        assert any(layer.groups == 4 for layer in changes(speedup).values())

    def test_groups_of_a_grouped_neighbour_stay(self):
        net = nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=4),
            nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1),
        )  # fmt: skip
        net = randomise(net)
        dummy = randn(1, 3, 5, 5)
        masks = joined(zeroing_masks(net, dummy, 0, 0.25), group_masks(net, {"1": 2, "3": 4}))
        found = changes(convert(net, dummy, masks))
        assert [found[str(n)].groups for n in range(5)] == [1, 2, 4, 4, 1]


class TestFiles:
    @pytest.fixture
    def small(self):
        net = randomise(Residual()).float()
        ModelSpeedup(net, torch.zeros(1, 3, 7, 7), group_masks(net, 4)).speedup_model()
        return net

    def test_a_file_brings_gathers_back(self, small, tmp_path):
        again = load_compact(save_compact(small, tmp_path / "m.safetensors"), Residual)
        x = torch.randn(2, 3, 7, 7)
        assert torch.equal(small(x), again(x))

    def test_the_plan_alone_rebuilds_the_permutations(self, small, tmp_path):
        from nni_gconv.artefact import plan_of, rebuild

        fresh = rebuild(Residual(), plan_of(small))
        fresh.load_state_dict(small.state_dict())
        again = rebuild(Residual(), plan_of(small))
        for name, buffer in small.named_buffers():
            if name.endswith("index"):
                assert torch.equal(again.get_buffer(name), buffer)
        x = torch.randn(2, 3, 7, 7)
        assert torch.equal(small(x), fresh.eval()(x))

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["onnx", "pt2"])
    def test_exported(self, small, tmp_path, kind):
        export_model(small, torch.zeros(1, 3, 7, 7), tmp_path / f"m.{kind}")

    def test_a_converted_model_is_traced_and_cut_again(self, small):
        net = copy.deepcopy(small).double()
        dummy = randn(1, 3, 7, 7)
        masks = zeroing_masks(net, dummy, 2)
        expected = outputs_of(masked(net, masks), dummy)
        ModelSpeedup(net, dummy, masks).speedup_model()
        assert_same_outputs(expected, outputs_of(net, dummy))


def test_an_optimizer_goes_on():
    torch.manual_seed(0)
    net = Residual()
    masks = group_masks(net, 4)
    for name, targets in masks.items():
        net.get_submodule(name).weight.data.mul_(targets["weight"])
    twin = copy.deepcopy(net)
    x = torch.randn(4, 3, 7, 7)

    def step(model, optimizer):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
        for name, targets in masks.items() if model is twin else ():
            model.get_submodule(name).weight.data.mul_(targets["weight"])

    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (net, twin))
    step(net, optimizer), step(twin, other)
    for name, targets in masks.items():
        net.get_submodule(name).weight.data.mul_(targets["weight"])
    speedup = ModelSpeedup(net, x, masks, verify=False)
    speedup.speedup_model()
    speedup.rebind_optimizer(optimizer)
    for _ in range(3):
        step(net, optimizer), step(twin, other)
    torch.testing.assert_close(net.eval()(x), twin.eval()(x), rtol=1e-4, atol=1e-5)
