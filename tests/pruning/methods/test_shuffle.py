"""ShufflePruner: orders and group counts that are learned, and the network they leave."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning_nets import bottleneck, conv, loop_evaluator
from torch import nn

from nni_gconv import ModelSpeedup, ShufflePruner
from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.groupconv.partition import l1
from nni_gconv.profiling import count
from nni_gconv.pruning.settings import PruneSettings, create_pruner
from nni_gconv.training.logs.metric_log import MetricLog
from nni_gconv.training.zoo import create_model

HERE = Path(__file__).parents[2] / "helpers"
DIGIT = torch.zeros(1, 1, 8, 8)
IMAGE = torch.zeros(1, 3, 32, 32)
CONVS = [{"op_types": ["Conv2d"]}]
HALF = {"macs": 0.5}


def resnet8():
    torch.manual_seed(0)
    return create_model("resnet8", num_classes=10, in_channels=1, width=0.5)


def converted(net, masks, dummy):
    """The small model, judged against the masked one in float64, and its report."""
    twin = copy.deepcopy(net)
    for name, targets in masks.items():
        for target, mask in targets.items():
            getattr(twin.get_submodule(name), target).data.mul_(mask)
    speedup = ModelSpeedup(net, dummy, masks)
    small = speedup.speedup_model()
    x = torch.randn(2, *dummy.shape[1:], generator=torch.Generator().manual_seed(0))
    first, second = (m.double().eval()(x.double()) for m in (twin, copy.deepcopy(small)))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    return small, speedup.report()


def trained(folder, net=None, *, epochs=3, resume=False, kind=ShufflePruner, **options):
    net = resnet8() if net is None else net
    evaluator = loop_evaluator(net, folder, epochs=epochs, resume=resume, momentum=0.9)
    pruner = kind(net, CONVS, evaluator, **{"budget": HALF, **options})
    _, masks = pruner.compress(max_epochs=epochs)
    return pruner, masks


class TestAtOnce:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("levels", "budget"),
        [
            ("search", {"macs": 0.5}), ("search", {"macs": 0.6, "params": 0.5}),
            ("threshold", {"params": 0.4}), ("threshold", {"macs": 0.5}),
            ("threshold", {"macs": 0.6, "params": 0.5}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("seed", range(3))
    def test_the_network_left_is_inside_the_budget(self, levels, budget, seed):
        torch.manual_seed(seed)
        net = create_model("resnet20", num_classes=10, in_channels=1, width=0.5)
        dense = count(net, DIGIT)
        pruner = ShufflePruner(net, CONVS, dummy_input=DIGIT, budget=budget, levels=levels)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        found = count(ModelSpeedup(net, DIGIT, masks, verify=False).speedup_model(), DIGIT)
        left = {m: getattr(found, m) / getattr(dense, m) / share for m, share in budget.items()}
        assert 0.99 <= max(left.values()) <= 1

    @pytest.mark.parametrize("sharing", ["none", "streams", "blocks"])
    def test_masks_are_the_group_convolutions_they_become(self, sharing):
        net = bottleneck()
        pruner = ShufflePruner(net, CONVS, dummy_input=DIGIT, budget=HALF, sharing=sharing)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        small, report = converted(net, masks, DIGIT)
        kinds = [m.groups for m in small.modules() if isinstance(m, nn.Conv2d)]
        assert sorted(kinds) == sorted([1, *pruner.groups.values()])
        assert max(kinds) > 1
        for name, groups in pruner.groups.items():
            assert float(masks[name]["weight"].mean()) == 1 / groups
        if sharing == "blocks":
            assert report.gathers == 0

    def test_no_order_is_better_for_the_group_counts_chosen(self):
        net = bottleneck()
        weight = net[6].weight.detach().clone()
        config_list = [{"op_names": ["6"], "num_groups": 4}]
        pruner = ShufflePruner(net, config_list, dummy_input=DIGIT)
        _, masks = pruner.compress()
        kept = float((l1(weight) * masks["6"]["weight"][:, :, 0, 0]).sum())
        assert kept == pytest.approx(pruner.partitions["6"].retained, rel=1e-6)
        assert pruner.partitions["6"].fraction > 0.28  # 0.25 by chance

    def test_layers_with_other_counts_share_an_order(self):
        """What one layer writes in 8 groups the next reads in 2, and no gather is left between."""
        torch.manual_seed(0)
        net = nn.Sequential(conv(1, 16), conv(16, 16, 1), nn.ReLU(), conv(16, 16, 1), conv(16, 5))
        config_list = [{"op_names": ["1"], "num_groups": 8}, {"op_names": ["3"], "num_groups": 2}]
        pruner = ShufflePruner(net, config_list, dummy_input=DIGIT)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        _, report = converted(net, masks, DIGIT)
        assert pruner.groups == {"1": 8, "3": 2}
        assert report.gathers == 0

    def test_counts_by_the_config_list(self):
        def groups(config_list, **options):
            return ShufflePruner(bottleneck(), config_list, dummy_input=DIGIT, **options).groups

        assert groups([{"op_types": ["Conv2d"], "num_groups": 4}]) == {"3": 4, "6": 4, "9": 4}
        assert groups([{"op_types": ["Conv2d"], "max_group_size": 8}]) == {"3": 2, "6": 1, "9": 2}
        capped = groups([{"op_types": ["Conv2d"]}], budget={"macs": 0.9}, max_groups=2)
        assert capped == {"3": 2, "6": 2, "9": 2}

    def test_a_budget_that_dense_meets_leaves_it_dense(self):
        pruner = ShufflePruner(bottleneck(), CONVS, dummy_input=DIGIT, budget={"macs": 1.0})
        _, masks = pruner.compress()
        assert set(pruner.groups.values()) == {1}
        assert all(bool(targets["weight"].all()) for targets in masks.values())

    @pytest.mark.slow
    def test_it_is_the_same_every_time(self):
        pruner = ShufflePruner(resnet8(), CONVS, dummy_input=DIGIT, budget=HALF)
        first = {n: t["weight"].clone() for n, t in pruner.compress()[1].items()}
        second = pruner.compress()[1]
        other = ShufflePruner(resnet8(), CONVS, dummy_input=DIGIT, budget=HALF).compress()[1]
        for name, mask in first.items():
            assert torch.equal(mask, second[name]["weight"])
            assert torch.equal(mask, other[name]["weight"])

    @pytest.mark.slow
    def test_a_budget_of_latency(self):
        torch.manual_seed(0)
        net = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 8))
        pruner = ShufflePruner(
            net, [{"op_names": ["2"]}], dummy_input=IMAGE, budget={"latency": 0.9}
        )
        pruner.compress()
        assert pruner.groups["2"] > 1


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("penalty", "levels"), [("proximal", "search"), ("subgradient", "threshold")]
    )
    def test_weight_moves_into_the_groups(self, tmp_path, penalty, levels):
        plain, _ = trained(tmp_path / "plain", penalty=penalty, levels=levels, delta_lambda=0.0)
        shaped, masks = trained(tmp_path / "shaped", penalty=penalty, levels=levels)

        def fraction(pruner):
            return np.mean([p.fraction for p in pruner.partitions.values()])

        assert fraction(shaped) > fraction(plain) + 0.15
        net = shaped.bound_model
        shaped.unwrap_model()
        converted(net, masks, DIGIT)

    @pytest.mark.slow
    def test_the_proximal_map_makes_zeros(self, tmp_path):
        pruner, masks = trained(tmp_path, epochs=6)
        outside = [
            pruner._weight(name).detach()[targets["weight"] == 0] for name, targets in masks.items()
        ]
        assert float((torch.cat(outside) == 0).float().mean()) > 0.5

    def test_the_penalty_is_that_of_the_costs(self, tmp_path):
        seen = []

        class Watched(ShufflePruner):
            def before_step(self):
                before = {n: self._weight(n).grad.clone() for n in self.groups}
                super().before_step()
                for name, cost in self._orders.costs(self._depths).items():
                    weight = self._weight(name)
                    kernels = torch.from_numpy(cost).float()[:, :, None, None]
                    added = self.strength * kernels * weight.detach().sign()
                    if self.clock.epoch < 1:
                        added = torch.zeros_like(added)
                    seen.append(torch.allclose(weight.grad, before[name] + added, atol=1e-6))

        pruner, _ = trained(tmp_path, kind=Watched, penalty="subgradient", warmup=1, epochs=2)
        assert len(seen) == 10 * len(pruner.groups)
        assert all(seen)

    @pytest.mark.slow
    def test_the_strength_follows_the_saving(self, tmp_path):
        strengths = []

        class Watched(ShufflePruner):
            def after_epoch(self, epoch):
                super().after_epoch(epoch)
                strengths.append(self.strength)

        trained(tmp_path, kind=Watched, warmup=1, delta_lambda=1e-9, epochs=4)
        assert strengths == pytest.approx([1e-9, 2e-9, 3e-9, 4e-9])

    @pytest.mark.slow
    def test_every_epoch_says_its_lambda_and_what_sparsity_it_could_have(self, tmp_path):
        acted, reachable = [], []

        class Watched(ShufflePruner):
            def before_epoch(self, epoch):
                super().before_epoch(epoch)
                acted.append(self.strength if epoch else 0.0)

            def after_epoch(self, epoch):
                super().after_epoch(epoch)
                # What masks of the groups that are within reach now would zero.
                splits = self._choice.splits(self._orders.kept(), self.options.threshold)
                groups = {n: self._choice.counts[n][k] for n, k in splits.items()}
                parts = self._orders.partitions(groups)
                masks = {n: torch.ones_like(self._weight(n)) for n in groups}
                for name, part in parts.items():
                    rows, columns = (np.asarray(g) for g in (part.row_groups, part.col_groups))
                    masks[name][torch.from_numpy(rows[:, None] != columns)] = 0
                zeros = sum(int((m == 0).sum()) for m in masks.values())
                reachable.append(zeros / sum(m.numel() for m in masks.values()))

        pruner, _ = trained(
            tmp_path, kind=Watched, warmup=1, epochs=4, delta_lambda=0.02, levels="threshold"
        )
        history = pruner.evaluator.result.history
        assert [r["lambda"] for r in history] == pytest.approx(acted)
        assert [r["reachable_sparsity"] for r in history] == pytest.approx(reachable)
        assert acted[0] == 0 < acted[1]
        assert reachable[-1] > 0

    @pytest.mark.slow
    def test_strength_by_the_scale_of_a_layer(self, tmp_path):
        seen = {}

        class Watched(ShufflePruner):
            def begin_training(self):
                with torch.no_grad():
                    self._weight("layer1.0.conv1").mul_(10)
                super().begin_training()

            def _spread(self, strength):
                super()._spread(strength)
                (term,) = self._active._terms
                largest = [float(s.max()) for s in term.strengths]
                seen.setdefault(
                    self.options.scale_aware, dict(zip(self.groups, largest, strict=True))
                )

        for aware in (False, True):
            trained(tmp_path / str(aware), kind=Watched, scale_aware=aware, epochs=1,
                    levels="threshold", delta_lambda=0.1)  # fmt: skip
        assert list(seen[False].values()) == pytest.approx([0.1] * 6)
        assert seen[True]["layer1.0.conv1"] > 5 * seen[True]["layer1.0.conv2"]

    def test_orders_are_renewed_between_epochs_too(self, tmp_path):
        steps = []

        class Watched(ShufflePruner):
            def _reorder(self):
                steps.append(self.clock.step)
                super()._reorder()

        trained(tmp_path, kind=Watched, update_every=2, epochs=2)
        assert steps == [0, 2, 4, 5, 6, 8, 10, 10, 10]

    def test_layers_alone_keep_the_penalty_from_others(self, tmp_path):
        net = resnet8()
        evaluator = loop_evaluator(net, tmp_path, epochs=1)
        config_list = [{"op_names": ["layer1.0.conv1"], "num_groups": 4}]
        pruner = ShufflePruner(net, config_list, evaluator)
        _, masks = pruner.compress(max_epochs=1)
        assert list(masks) == ["layer1.0.conv1"]
        assert pruner.groups == {"layer1.0.conv1": 4}

    @pytest.mark.slow
    @pytest.mark.parametrize(("stop_at", "levels"), [(7, "search"), (12, "threshold")])
    def test_killed_and_resumed_it_ends_the_same(self, tmp_path, stop_at, levels):
        class Stop(Exception):
            pass

        class Killed(ShufflePruner):
            def after_step(self):
                super().after_step()
                if self.clock.step == stop_at:
                    raise Stop

        options = {"levels": levels, "scale_aware": True, "update_every": 3}
        whole, masks = trained(tmp_path / "whole", **options)
        with pytest.raises(Stop):
            trained(tmp_path / "cut", kind=Killed, **options)
        torch.manual_seed(5)
        net = create_model("resnet8", num_classes=10, in_channels=1, width=0.5)
        resumed, again = trained(tmp_path / "cut", net, resume=True, **options)
        _, after = trained(tmp_path / "cut", net=resnet8(), resume=True, **options)
        assert whole.groups == resumed.groups
        assert whole.strength == resumed.strength
        for name in whole.groups:
            assert torch.equal(masks[name]["weight"], again[name]["weight"])
            assert torch.equal(masks[name]["weight"], after[name]["weight"])
            assert torch.equal(whole._weight(name), resumed._weight(name))

    def test_pictures_go_to_tensorboard(self, tmp_path):
        net = resnet8()
        with MetricLog(tmp_path, nni=False) as log:
            evaluator = loop_evaluator(net, tmp_path)
            evaluator._options["log"] = log
            ShufflePruner(net, CONVS, evaluator, budget=HALF).compress(max_epochs=1)
        events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert "shuffle/layer1.0.conv1" in found.Tags()["images"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "3 has neither num_groups nor max_group_size, and there is no budget"),
            ({"budget": {"flops": 0.5}}, "unknown measure 'flops'"),
            ({"budget": {"macs": 0.1}}, r"budget: macs of 0\.1.. of dense .* cannot be reached"),
            ({"budget": {"latency": 0.5}, "levels": "threshold"}, "use 'search'"),
            ({"penalty": "proximall"}, "did you mean 'proximal'"),
            ({"levels": "all"}, "unknown levels 'all'"),
            ({"sharing": "some"}, "sharing"),
            ({"decay": 1.5}, "decay: 1.5 is not allowed"),
            ({"threshold": -0.1}, "threshold: -0.1 is not allowed"),
            ({"warmup": 1.5}, "warmup: 1.5 is not allowed"),
            ({"delta_lambda": -1.0}, "delta_lambda: -1.0 is not allowed"),
            ({"warmup": -1}, "warmup: -1 is not allowed"),
            ({"update_every": 0}, "update_every: 0 is not allowed"),
            ({"config_list": [{"op_names": ["0"]}], "budget": HALF}, "0"),
            ({"config_list": [{"op_names": ["6"], "num_groups": 3}]}, "3 groups do not divide"),
            ({"config_list": [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]}, "sparse_ratio"),
        ],
    )
    def test_a_mistake_is_one_line_and_leaves_the_model_unwrapped(self, options, message):
        net = bottleneck()
        options = {"config_list": CONVS, **options}
        with pytest.raises((ConfigError, BudgetError), match=message) as error:
            ShufflePruner(net, dummy_input=DIGIT, **options)
        assert "\n" not in str(error.value)
        assert not any(hasattr(m, "_nni_wrapper") for m in net.modules())

    def test_a_warmup_as_long_as_the_training(self, tmp_path):
        with pytest.raises(ConfigError, match="warmup: 2 epochs of 2 leave none"):
            trained(tmp_path, warmup=2, epochs=2)

    def test_training_without_an_evaluator(self):
        with pytest.raises(ConfigError, match="need an evaluator="):
            ShufflePruner(bottleneck(), CONVS, dummy_input=DIGIT, budget=HALF).compress(
                max_epochs=1
            )


def test_a_recipe_makes_it():
    settings = PruneSettings(
        method="shuffle", config_list=CONVS, budget=HALF, options={"sharing": "none"}
    )
    pruner = create_pruner(settings, bottleneck(), dummy_input=DIGIT)
    assert isinstance(pruner, ShufflePruner)
    assert pruner.options.sharing == "none"
    with pytest.raises(ValueError, match="did you mean 'sharing'"):
        PruneSettings(method="shuffle", config_list=CONVS, options={"sharin": "none"})
