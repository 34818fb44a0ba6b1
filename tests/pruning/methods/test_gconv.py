"""GroupConvPruner: group counts, partitions, masks that hold, and the network they become."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pruning_nets import bottleneck, loop_evaluator
from torch import nn

from nni_gconv import FPGMPruner, GroupConvPruner, ModelSpeedup, partition
from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.groupconv.partition import l2
from nni_gconv.profiling import count
from nni_gconv.pruning.settings import PruneSettings, create_pruner
from nni_gconv.training.zoo import create_model

IMAGE = torch.zeros(1, 3, 32, 32)
ALL_FOUR = [{"op_types": ["Conv2d"], "num_groups": 4}]


DIGIT = torch.zeros(1, 1, 8, 8)


def converted(net, masks, dummy):
    """The small model, judged against the masked one, and its report."""
    twin = copy.deepcopy(net)
    for name, targets in masks.items():
        for target, mask in targets.items():
            getattr(twin.get_submodule(name), target).data.mul_(mask)
    speedup = ModelSpeedup(net, dummy, masks)
    small = speedup.speedup_model()
    x = torch.randn(2, *dummy.shape[1:], generator=torch.Generator().manual_seed(0))
    first, second = (
        twin.double().eval()(x.double()),
        copy.deepcopy(small).double().eval()(x.double()),
    )
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    return small, speedup.report()


class TestCounts:
    def counts(self, config_list, net=None, **options):
        net = net or bottleneck()
        return GroupConvPruner(net, config_list, dummy_input=DIGIT, **options)

    def test_a_number_for_all_and_the_reason_where_it_cannot_be(self, caplog):
        pruner = self.counts(ALL_FOUR)
        assert pruner.groups == {"3": 4, "6": 4, "9": 4}
        assert "no common divisor" in pruner.skipped["0"]
        assert "not pruned: 0: " in caplog.text

    def test_channels_of_a_group(self):
        pruner = self.counts([{"op_types": ["Conv2d"], "max_group_size": 4}])
        assert pruner.groups == {"3": 4, "6": 2, "9": 4}
        pruner = self.counts([{"op_types": ["Conv2d"], "max_group_size": 8}])
        assert pruner.groups == {"3": 2, "9": 2}
        assert pruner.skipped["6"] == "it is no wider than 8 channels"

    def test_later_entries_go_before(self):
        pruner = self.counts([*ALL_FOUR, {"op_names": ["6"], "num_groups": 8}])
        assert pruner.groups["6"] == 8

    def test_a_count_that_does_not_divide_is_skipped_with_its_reason(self):
        pruner = self.counts(
            [{"op_names": ["3"], "num_groups": 2}, {"op_names": ["6"], "num_groups": 3}]
        )
        assert pruner.groups == {"3": 2}
        assert pruner.skipped["6"] == "3 groups do not divide 8 filters and 8 input channels"

    def test_a_file_or_a_mapping(self, tmp_path):
        path = tmp_path / "groups.json"
        path.write_text(
            json.dumps({"module.3": {"G": 2, "F": 8, "C": 16}, "6": {"G": 1, "F": 8, "C": 8}})
        )
        selected = [{"op_types": ["Conv2d"]}]
        assert self.counts(selected, group_config=path).groups == {"3": 2}
        assert self.counts(selected, group_config={"6": 4}).groups == {"6": 4}

    @pytest.mark.slow
    def test_a_budget_is_used_to_one_percent(self):
        torch.manual_seed(2)  # most score leaves 2 % here
        net = create_model("resnet14", in_channels=1, width=0.5)
        image = torch.zeros(1, 1, 8, 8)
        dense = count(net, image).macs
        pruner = GroupConvPruner(
            net, [{"op_types": ["Conv2d"]}], dummy_input=image, budget={"macs": 0.5}, restarts=0
        )
        _, masks = pruner.compress()
        pruner.unwrap_model()
        small = ModelSpeedup(net, image, masks, verify=False).speedup_model()
        assert 0.99 <= count(small, image).macs / dense / 0.5 <= 1

    @pytest.mark.slow
    def test_a_budget_is_kept(self):
        net = create_model("preresnet11", num_classes=10)
        dense = count(net, IMAGE)
        pruner = GroupConvPruner(
            net, [{"op_types": ["Conv2d"]}], dummy_input=IMAGE, restarts=0,
            budget={"macs": 0.5, "params": 0.6},
        )  # fmt: skip
        _, masks = pruner.compress()
        pruner.unwrap_model()
        small, _ = converted(net, masks, IMAGE)
        found = count(small, IMAGE)
        assert found.macs <= 0.5 * dense.macs
        assert found.params <= 0.6 * dense.params
        assert max(found.macs / dense.macs / 0.5, found.params / dense.params / 0.6) >= 0.99

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"config_list": [{"op_types": ["Conv2d"]}]}, "neither num_groups nor max_group_size"),
            ({"config_list": [{"op_names": ["0"], "num_groups": 4}]}, "no layer can be grouped: 0"),
            ({"config_list": [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]}, "sparse_ratio"),
            ({"group_config": {"nope": 2}}, "nope"),
            ({"group_config": {"6": 3}}, "3 groups do not divide 8 filters"),
            ({"group_config": {"6": 2}, "budget": {"macs": 0.5}}, "exclude each other"),
            ({"criterion": "l3"}, "did you mean"),
            ({"method": "assignement"}, "assignment"),
            ({"sharing": "all"}, "blocks"),
            ({"gate": "guessed"}, "measured"),
            ({"shaping": -1}, "shaping: -1 is not allowed"),
            ({"shaping": 1.0}, "shaping: needs an evaluator="),
            ({"criterion": "taylor"}, "taylor: needs an evaluator="),
            ({"budget": {"macs": 0.001}}, "reach"),
            ({"budget": {"macs": 1.0}}, "budget: the dense network is within it"),
            ({"group_config": {1: 2}}, "group_config: 1: expected the name of a layer"),
            ({"group_config": [("6", 2)]}, "group_config: layer -> number of groups, not a list"),
            ({"group_config": {}}, "group_config: every layer stays as it is"),
            ({"group_config": {"6": 1}}, "group_config: every layer stays as it is"),
            ({"config_list": [{"op_names": ["6"], "num_groups": 1}]}, "none is asked for more"),
            (
                {"config_list": [{"op_types": ["Conv2d"], "num_groups": 3}]},
                "3 groups do not divide 8 filters and 16 input channels",
            ),
            ({"shaping": float("nan")}, "shaping: nan is not allowed"),
            ({"seed": "a"}, r"seed: 'a' is not allowed \(a whole number from 0\)"),
            ({"restarts": -1}, r"restarts: -1 is not allowed \(a whole number from 0\)"),
            (
                {"method": "grps", "num_sort_iters": 1.5},
                r"num_sort_iters: 1.5 is not allowed \(a whole number from 0\)",
            ),
            ({"criterion": ["l2"]}, "criterion"),
            ({"criterion": {"3": np.ones((8, 16))}}, r"no scores for the layer '6' .given for: 3"),
            ({"criterion": dict.fromkeys("369", np.ones((8, 8)))}, r"criterion\['3'\]: shape"),
        ],
    )
    def test_a_mistake_is_one_line_and_leaves_the_model_unwrapped(self, options, message):
        net = bottleneck()
        options = {"config_list": ALL_FOUR, **options}
        if "budget" in options:
            options["config_list"] = [{"op_types": ["Conv2d"]}]
        with pytest.raises((ConfigError, BudgetError), match=message) as error:
            GroupConvPruner(net, dummy_input=DIGIT, **options)
        assert "\n" not in str(error.value)
        assert not any(hasattr(m, "_nni_wrapper") for m in net.modules())


class TestPartitions:
    def test_a_layer_alone_keeps_what_partition_keeps(self):
        net = bottleneck()
        weight = net[6].weight.detach().clone()
        pruner = GroupConvPruner(net, [{"op_names": ["6"], "num_groups": 2}], dummy_input=DIGIT)
        _, masks = pruner.compress()
        part = partition(l2(weight), 2)
        assert pruner.partitions["6"].retained == pytest.approx(part.retained)
        kept = (masks["6"]["weight"] * l2(weight)[:, :, None, None]).flatten(2).amax(2).sum()
        assert float(kept) == pytest.approx(part.retained, rel=1e-5)

    def test_scores_of_ones_own(self):
        scores = {n: torch.rand(16 if n == "9" else 8, 16 if n == "3" else 8) for n in "369"}
        pruner = GroupConvPruner(
            bottleneck(), ALL_FOUR, dummy_input=DIGIT, criterion=scores, sharing="none"
        )
        pruner.compress()
        for name, matrix in scores.items():
            assert pruner.partitions[name].retained == pytest.approx(partition(matrix, 4).retained)

    def test_the_papers_heuristic_sorts_as_often_as_it_is_told(self):
        net = nn.Sequential(nn.Conv2d(64, 64, 1))
        scores = l2(net[0].weight)
        kept = []
        for sorts in (0, 1, 10):
            pruner = GroupConvPruner(
                copy.deepcopy(net), [{"op_names": ["0"], "num_groups": 8}], method="grps",
                num_sort_iters=sorts, dummy_input=torch.zeros(1, 64, 2, 2),
            )  # fmt: skip
            pruner.compress()
            kept.append(pruner.partitions["0"].retained)
            paper = partition(scores, 8, "grps", num_sort_iters=sorts).retained
            assert kept[-1] == pytest.approx(paper)
        assert kept[0] < kept[1] < kept[2]

    def test_restarts_are_passed_on(self):
        weight = bottleneck()[6].weight
        pruner = GroupConvPruner(
            bottleneck(), [{"op_names": ["6"], "num_groups": 4}], dummy_input=DIGIT, restarts=0
        )
        pruner.compress()
        assert pruner.partitions["6"].retained == partition(l2(weight), 4, restarts=0).retained

    @pytest.mark.parametrize("criterion", ["l2", "taylor"])
    def test_a_weight_that_is_no_number_is_named(self, criterion, tmp_path):
        net = bottleneck()
        if criterion == "l2":
            net[6].weight.data[0, 0, 0, 0] = float("nan")
            with pytest.raises(ConfigError, match="l2 of 6: scores are finite"):
                GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT).compress()
            return
        pruner = GroupConvPruner(net, ALL_FOUR, loop_evaluator(net, tmp_path), criterion=criterion)
        pruner._sums["6"] = torch.full((8, 8), float("nan"))
        with pytest.raises(ConfigError, match=r"\['6'\]: scores are finite"):
            pruner.generate_masks()

    @pytest.mark.parametrize(("sharing", "gathers"), [("none", 3), ("streams", 3), ("blocks", 1)])
    def test_sharing_saves_gathers(self, sharing, gathers):
        net = bottleneck()
        pruner = GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT, sharing=sharing)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        small, report = converted(net, masks, DIGIT)
        assert report.gathers <= gathers
        assert report.gathers == 0 or sharing != "blocks"  # one bottleneck behind a dense layer
        assert [small.get_submodule(n) and c for n, c in pruner.groups.items()] == [4, 4, 4]

    @pytest.mark.slow
    def test_at_most_one_gather_a_block_in_a_residual_network(self):
        net = create_model("resnet20", shortcut="B")
        pruner = GroupConvPruner(net, ALL_FOUR, dummy_input=IMAGE, restarts=0)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        _, report = converted(net, masks, IMAGE)
        assert len(pruner.groups) == 20
        assert report.gathers <= 9

    @pytest.mark.slow
    def test_no_more_than_three_layers_share_in_a_row(self):
        torch.manual_seed(0)
        net = nn.Sequential(*[nn.Conv2d(8, 8, 1) for _ in range(9)])
        config_list = [{"op_names": [str(i) for i in range(1, 8)], "num_groups": 4}]
        pruner = GroupConvPruner(net, config_list, dummy_input=torch.zeros(1, 8, 2, 2))
        _, masks = pruner.compress()
        pruner.unwrap_model()
        _, report = converted(net, masks, torch.zeros(1, 8, 2, 2))
        with_gather = [layer.name for layer in report.layers if layer.gathers]
        assert with_gather == ["4", "7"]

    @pytest.mark.parametrize("method", ["grps", "sort", "same", "shuffle", "random"])
    def test_every_method_is_exact(self, method):
        net = bottleneck()
        pruner = GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT, method=method)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        converted(net, masks, DIGIT)
        assert float(masks["6"]["weight"].mean()) == 0.25

    def test_the_seed_decides_at_random(self):
        def mask(seed):
            pruner = GroupConvPruner(
                bottleneck(), ALL_FOUR, dummy_input=DIGIT, method="random", seed=seed
            )
            return pruner.compress()[1]["6"]["weight"]

        assert torch.equal(mask(0), mask(0))
        assert not torch.equal(mask(0), mask(1))

    @pytest.mark.slow
    def test_the_table_says_what_is_kept(self):
        from rich.console import Console

        pruner = GroupConvPruner(bottleneck(), ALL_FOUR, dummy_input=DIGIT)
        pruner.compress()
        with (console := Console(width=150)).capture() as captured:
            console.print(pruner.table())
        text = captured.get()
        assert f"{pruner.partitions['6'].fraction:.1%}" in text
        assert "no common divisor" in text


class TestTogether:
    @pytest.mark.slow
    def test_a_channel_pruned_network_is_grouped(self):
        net = bottleneck()
        pruner = FPGMPruner(net, [{"op_names": ["3", "6"], "sparse_ratio": 0.5}], dummy_input=DIGIT)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        grouper = GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT, masks=masks, restarts=0)
        _, both = grouper.compress()
        grouper.unwrap_model()
        small, _ = converted(net, both, DIGIT)
        assert (small[6].groups, tuple(small[6].weight.shape[:2])) == (4, (4, 1))
        assert float(both["6"]["bias"].sum()) == 4

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"budget": {"macs": 0.35}}], ids=["ratio", "budget"])
    def test_channels_of_a_grouped_network_are_pruned(self, options):
        net = bottleneck()
        dense = count(net, DIGIT).macs
        grouper = GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT, restarts=0)
        _, masks = grouper.compress()
        grouper.unwrap_model()
        entry = {"op_names": ["0", "3", "6", "9"], **({} if options else {"sparse_ratio": 0.5})}
        pruner = FPGMPruner(net, [entry], dummy_input=DIGIT, masks=masks, **options)
        _, both = pruner.compress()
        pruner.unwrap_model()
        small, report = converted(net, both, DIGIT)
        found = {layer.name: layer for layer in report.layers}
        assert [found[n].groups for n in ("3", "6", "9")] == [4, 4, 4]
        assert not any("equally wide" in note for note in report.notes)
        if options:
            assert 0.3 * dense < count(small, DIGIT).macs <= 0.35 * dense
        else:
            assert [found[n].after[0] for n in ("0", "3", "6", "9")] == [8, 4, 4, 8]

    def test_scores_of_a_grouped_network_are_those_inside_the_groups(self):
        net = bottleneck()
        weight = net[6].weight.data
        part = partition(torch.rand(8, 8), 2)
        mask = torch.from_numpy(part.mask()).float().view(8, 8, 1, 1).expand_as(weight).clone()
        inside = torch.arange(1.0, 9.0).view(8, 1, 1, 1)
        # Filters that weigh most outside their groups weigh least inside.
        weight.copy_(mask * inside + (1 - mask) * (100 - 10 * inside))
        pruner = create_pruner(
            PruneSettings(method="nni:L1NormPruner",
                          config_list=[{"op_names": ["6"], "sparse_ratio": 0.5}]),
            net, dummy_input=DIGIT,
        )  # fmt: skip
        first = pruner.compress()[1]["6"]["bias"]
        pruner.unwrap_model()
        pruner = FPGMPruner(
            net, [{"op_names": ["6"], "sparse_ratio": 0.5}], norm_ratio=0.5, dummy_input=DIGIT,
            masks={"6": {"weight": mask}},
        )  # fmt: skip
        second = pruner.compress()[1]["6"]["bias"]
        assert not torch.equal(first, second)
        groups = part.row_groups
        kept = {int(g): [i for i in range(8) if groups[i] == g and second[i]] for g in (0, 1)}
        assert kept == {g: [i for i in range(8) if groups[i] == g][2:] for g in (0, 1)}

    @pytest.mark.slow
    @pytest.mark.parametrize("criterion", ["l2", "own"])
    def test_a_budget_of_a_channel_pruned_network_is_a_share_of_the_dense_one(self, criterion):
        net = bottleneck()
        dense = count(net, DIGIT)
        if criterion == "own":
            criterion = {n: l2(net.get_submodule(n).weight) for n in "369"}
        pruner = FPGMPruner(net, [{"op_names": ["3", "6"], "sparse_ratio": 0.5}], dummy_input=DIGIT)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        with pytest.raises(ConfigError, match=r"budget\.latency: cannot be measured beside masks="):
            GroupConvPruner(
                net, [{"op_types": ["Conv2d"]}], dummy_input=DIGIT, masks=masks,
                budget={"latency": 0.5},
            )  # fmt: skip
        grouper = GroupConvPruner(
            net, [{"op_types": ["Conv2d"]}], dummy_input=DIGIT, masks=masks,
            budget={"macs": 0.32, "params": 0.5}, criterion=criterion, restarts=0,
        )  # fmt: skip
        _, both = grouper.compress()
        grouper.unwrap_model()
        small, _ = converted(net, both, DIGIT)
        found = count(small, DIGIT)
        assert 0.26 * dense.macs < found.macs <= 0.32 * dense.macs
        assert found.params <= 0.5 * dense.params

    def test_masks_of_channels_beside_which_none_can_be_ranked(self):
        net = bottleneck()
        first = FPGMPruner(net, [{"op_names": ["6"], "sparse_ratio": 0.25}], dummy_input=DIGIT)
        _, masks = first.compress()
        first.unwrap_model()
        with pytest.raises(ConfigError, match="they silence channels already"):
            FPGMPruner(
                net, [{"op_names": ["3"], "sparse_ratio": 0.5}], dummy_input=DIGIT, masks=masks
            )

    def test_what_is_left_has_to_be_divisible(self):
        net = bottleneck()
        pruner = FPGMPruner(net, [{"op_names": ["6"], "sparse_ratio": 0.25}], dummy_input=DIGIT)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        grouper = GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT, masks=masks)
        assert grouper.skipped["6"] == "4 groups do not divide 6 filters and 8 input channels"
        assert grouper.groups == {"3": 4}

    def test_a_wrapped_model_is_refused(self):
        net = bottleneck()
        FPGMPruner(net, [{"op_names": ["6"], "sparse_ratio": 0.5}], dummy_input=DIGIT).compress()
        with pytest.raises(ConfigError, match="pass masks="):
            GroupConvPruner(net, ALL_FOUR, dummy_input=DIGIT)


class TestTraining:
    def trained(self, tmp_path, net=None, epochs=2, resume=False, **options):
        net = net or bottleneck()
        evaluator = loop_evaluator(net, tmp_path, epochs=epochs, resume=resume, momentum=0.9)
        pruner = GroupConvPruner(net, ALL_FOUR, evaluator, **{"restarts": 0, **options})
        _, masks = pruner.compress(max_epochs=epochs)
        return pruner, masks

    @pytest.mark.slow
    def test_masks_hold_after_every_step(self, tmp_path):
        net, seen = bottleneck(), []

        class Watched(GroupConvPruner):
            def after_step(self):
                super().after_step()
                for name in self.groups:
                    space = self._target_spaces[name]["weight"]
                    state = self.optimizer.state[space.target]["momentum_buffer"]
                    seen.append(float(space.target.detach()[space.mask == 0].abs().max()))
                    seen.append(float(state[space.mask == 0].abs().max()))

        evaluator = loop_evaluator(net, tmp_path, epochs=2, momentum=0.9)
        pruner = Watched(net, ALL_FOUR, evaluator, restarts=0)
        dense = net[6].weight.detach().clone()
        _, masks = pruner.compress(max_epochs=2)
        assert len(seen) > 50
        assert max(seen) == 0
        assert float(masks["6"]["weight"].mean()) == 0.25
        pruner.unwrap_model()
        assert not torch.equal(net[6].weight * masks["6"]["weight"], dense * masks["6"]["weight"])
        converted(net, masks, DIGIT)

    @pytest.mark.slow
    def test_shaping_moves_weight_into_the_groups(self, tmp_path):
        plain, _ = self.trained(tmp_path / "plain", epochs=4, shaping=1e-9)
        shaped, _ = self.trained(tmp_path / "shaped", epochs=4, shaping=1.0)
        for name in plain.groups:
            assert shaped.partitions[name].fraction > plain.partitions[name].fraction + 0.15

    def test_taylor_scores_are_those_of_the_first_epoch(self, tmp_path):
        net, sums = bottleneck(), {}

        class Watched(GroupConvPruner):
            def before_step(self):
                super().before_step()
                if self.clock.epoch == 0:
                    weight = self._target_spaces["6"]["weight"].target
                    product = (weight.detach() * weight.grad).double().sum((2, 3)).abs()
                    sums["6"] = sums.get("6", 0) + product

        pruner = Watched(
            net, ALL_FOUR, loop_evaluator(net, tmp_path, epochs=2), criterion="taylor",
            sharing="none",
        )  # fmt: skip
        _, masks = pruner.compress(max_epochs=2)
        part = partition(sums["6"], 4)
        assert pruner.partitions["6"].retained == pytest.approx(part.retained, rel=1e-5)
        assert np.array_equal(masks["6"]["weight"][:, :, 0, 0].numpy(), part.mask())

    @pytest.mark.parametrize("options", [{"shaping": 0.5}, {"criterion": "taylor"}])
    @pytest.mark.parametrize("length", [{}, {"max_steps": 3}])
    def test_what_needs_training_is_not_left_out_in_silence(self, tmp_path, options, length):
        net = bottleneck()
        pruner = GroupConvPruner(net, ALL_FOUR, loop_evaluator(net, tmp_path), **options)
        with pytest.raises(ConfigError, match=r"needs compress\(max_epochs=...\) to train"):
            pruner.compress(**length)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options", [{}, {"shaping": 0.5}, {"criterion": "taylor"}], ids=["mask", "shape", "taylor"]
    )
    def test_a_resume_gives_the_same_masks_and_weights(self, tmp_path, options):
        class Stop(Exception):
            pass

        class Killed(GroupConvPruner):
            def after_step(self):
                super().after_step()
                if self.clock.step == 12:
                    raise Stop

        whole, masks = self.trained(tmp_path / "whole", epochs=3, **options)
        net = bottleneck()
        with pytest.raises(Stop):
            Killed(
                net,
                ALL_FOUR,
                loop_evaluator(net, tmp_path / "cut", epochs=3, momentum=0.9),
                restarts=0,
                **options,
            ).compress(max_epochs=3)
        resumed, again = self.trained(
            tmp_path / "cut", bottleneck(1), epochs=3, resume=True, **options
        )
        for name in whole.groups:
            assert torch.equal(masks[name]["weight"], again[name]["weight"])
            first, second = (p._target_spaces[name]["weight"].target for p in (whole, resumed))
            assert torch.equal(first, second)
        assert whole.partitions.keys() == resumed.partitions.keys()


def test_a_layer_that_is_slower_grouped_stays_dense(monkeypatch):
    # Which one that is depends on the machine: the gate's limit is moved, not its measurement.
    from nni_gconv.pruning.methods.gconv import group_counts

    measured = group_counts.slower_than_dense

    def judge(limit):
        def found(*args, **options):
            gate = measured(*args, **options, limit=limit, min_seconds=0.0)
            # Nor is it known which of them are computed as dense layers.
            rows = tuple(replace(row, form="plain, 4 groups") for row in gate.rows)
            return replace(gate, rows=rows)

        monkeypatch.setattr(group_counts, "slower_than_dense", found)

    judge(0.0)
    with pytest.raises(ConfigError, match=r"no layer can be grouped: .*"):
        GroupConvPruner(bottleneck(), ALL_FOUR, dummy_input=DIGIT, gate="measured")
    judge(1e9)
    pruner = GroupConvPruner(bottleneck(), ALL_FOUR, dummy_input=DIGIT, gate="measured")
    assert pruner.groups == {"3": 4, "6": 4, "9": 4}


def test_a_recipe_makes_it():
    settings = PruneSettings(method="gconv", config_list=ALL_FOUR, options={"sharing": "none"})
    pruner = create_pruner(settings, bottleneck(), dummy_input=DIGIT)
    assert isinstance(pruner, GroupConvPruner)
    assert pruner.options.sharing == "none"
    with pytest.raises(ValueError, match="did you mean 'sharing'"):
        PruneSettings(method="gconv", config_list=ALL_FOUR, options={"sharin": "none"})
