"""GSparsity: what dies, what the gain does, and the way to a budget."""

from __future__ import annotations

import logging
from pathlib import Path

import nni
import numpy as np
import pytest
import torch
from mask_tools import Stop, alive, seeded
from nni.compression import TorchEvaluator
from processes import written_by_ranks
from pruning_nets import GroupBlock, conv, loop_evaluator, plain_net, randomised
from torch import nn

from nni_gconv import GSparsityPruner, ModelSpeedup, ProxSGD
from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.graph import Coupling
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.gsparsity.group_lasso import (
    NormSpread,
    gain_factor,
    layer_gains,
    loss_of_norm,
    norms_behind,
    shorten_filters,
)
from nni_gconv.recipe.load import load_recipe
from nni_gconv.training.zoo import create_model

CONFIGS = Path(__file__).parents[3] / "configs"
CONVS = [{"op_types": ["Conv2d"]}]
SMALL = torch.zeros(1, 3, 8, 8)
DIGIT = torch.zeros(1, 1, 8, 8)


def with_norms(layer, norms):
    """Give the filters of a convolution these norms."""
    with torch.no_grad():
        flat = torch.randn(len(norms), layer.weight[0].numel(), dtype=torch.float64)
        flat *= torch.tensor(norms, dtype=torch.float64)[:, None] / flat.norm(dim=1, keepdim=True)
        layer.weight.copy_(flat.view_as(layer.weight))


def two_convs(norms):
    net = seeded(lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))).double()
    with_norms(net[0], norms)
    return net


def normed_net():
    """A block whose inner norm has a shift that a dead filter lets through."""
    net = seeded(
        lambda: nn.Sequential(
            conv(1, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
        )
    )  # fmt: skip
    net[1].bias.data.fill_(0.5)
    return net


class Skip(nn.Module):
    """Two convolutions whose outputs are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 4), conv(3, 4), conv(4, 2)

    def forward(self, x):
        return self.head((self.a(x) + self.b(x)).relu())


def mu_of(pruner):
    """Gain of each parameter that has one, by the name of its layer."""
    spaces = {id(targets["weight"].target): name for name, targets in pruner._target_spaces.items()}
    return {
        spaces[id(p)]: group["mu"]
        for group in pruner.optimizer.param_groups
        for p in group["params"]
        if id(p) in spaces and group.get("mu") is not None
    }


class Watched(GSparsityPruner):
    """Writes down what stands after each epoch."""

    def prepare_training(self):
        super().prepare_training()
        self.seen = []

    def before_epoch(self, epoch):
        super().before_epoch(epoch)
        self.began_settled = self.settled

    def after_epoch(self, epoch):
        super().after_epoch(epoch)
        masks = {
            m: {k: v for k, v in t.items() if v is not None} for m, t in self.get_masks().items()
        }
        self.seen.append(
            {
                "gains": mu_of(self),
                "settled": self.settled,
                "began_settled": self.began_settled,
                "masks": masks,
            }
        )


class TestThreshold:
    def test_a_filter_lives_above_the_threshold(self):
        net = two_convs([2e-6, 1e-6, 5e-7, 0.3])
        found = net[0].weight.detach().flatten(1).norm(dim=1)
        net[0].weight.data[1] *= 1e-6 / found[1]
        _, masks = GSparsityPruner(
            net, [{"op_names": ["0"]}], dummy_input=SMALL.double()
        ).compress()
        assert alive(masks["0"]["weight"]).tolist() == [True, False, False, True]

    @pytest.mark.parametrize(("given", "kept"), [({"threshold": 0.2}, 2), ({}, 4)])
    def test_it_can_be_given(self, given, kept):
        net = two_convs([0.1, 0.2, 0.3, 0.4])
        masks = GSparsityPruner(net, [{"op_names": ["0"]}], dummy_input=SMALL.double(), **given)
        assert sum(alive(masks.compress()[1]["0"]["weight"]).tolist()) == kept

    def test_an_entry_can_ask_otherwise(self):
        for entry, kept in (({"sparse_threshold": 0.3}, 1), ({"sparse_ratio": 0.25}, 3)):
            net = two_convs([0.1, 0.2, 0.3, 0.4])
            config = [{"op_names": ["0"], **entry}]
            masks = GSparsityPruner(net, config, dummy_input=SMALL.double()).compress()[1]
            assert sum(alive(masks["0"]["weight"]).tolist()) == kept

    @pytest.mark.parametrize("rule", ["mean", "max", "union"])
    def test_a_channel_dies_with_the_last_of_its_filters(self, rule):
        net = seeded(Skip)
        with_norms(net.a, [1e-8, 1.0, 1e-7, 1e-8])
        with_norms(net.b, [1e-8, 1e-8, 1e-5, 1.0])
        pruner = GSparsityPruner(net, [{"op_names": ["a", "b"]}], dummy_input=SMALL, coupling=rule)
        masks = pruner.compress()[1]
        kept = [alive(masks[name]["weight"]).tolist() for name in "ab"]
        assert kept == [[False, True, True, True]] * 2

    def test_one_channel_of_a_dead_layer_stays(self):
        net = two_convs([0.0] * 4)
        masks = GSparsityPruner(net, [{"op_names": ["0"]}], dummy_input=SMALL.double()).compress()[
            1
        ]
        assert sum(alive(masks["0"]["weight"]).tolist()) == 1


class TestRanking:
    def test_layers_are_compared_by_their_largest_and_the_dead_go_first(self):
        net = seeded(
            lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))
        )
        with_norms(net[0], [100.0] * 6 + [0.0, 90.0])
        with_norms(net[2], [1e-3] * 4 + [1e-4] * 2 + [0.0] * 2)
        pruner = GSparsityPruner(net, CONVS, dummy_input=SMALL, budget={"macs": 0.6})
        masks = pruner.compress()[1]
        assert alive(masks["0"]["weight"]).tolist() == [True] * 6 + [False, True]
        assert alive(masks["2"]["weight"]).tolist()[:4] == [True] * 4
        assert alive(masks["2"]["weight"]).tolist()[4:] == [False] * 4

    def test_a_layer_that_died_altogether_is_not_the_best(self):
        net = seeded(
            lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))
        )
        with_norms(net[0], [1e-7] * 8)
        pruner = GSparsityPruner(net, CONVS, dummy_input=SMALL, budget={"macs": 0.7})
        masks = pruner.compress()[1]
        assert sum(alive(masks["0"]["weight"]).tolist()) < 8
        assert all(alive(masks["2"]["weight"]).tolist())

    def test_the_norm_behind_a_filter_can_be_folded_in(self):
        net = normed_net()
        with_norms(net[0], [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
        net[1].weight.data = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -9.0])
        net[1].running_var[1] = 1e4
        config = [{"op_names": ["0"], "sparse_ratio": 0.25}]
        kept = {}
        for score in ("norm", "folded"):
            pruner = GSparsityPruner(net, config, dummy_input=DIGIT, score=score)
            kept[score] = alive(pruner.compress()[1]["0"]["weight"]).tolist()
            pruner.unwrap_model()
        assert kept["norm"] == [True] * 6 + [False] * 2
        assert kept["folded"] == [True, False, True, True, True, True, False, True]

    def test_norms_behind_are_found_by_tracing(self):
        found = norms_behind(Coupling.trace(create_model("resnet8b", width=0.25), SMALL))
        assert found["conv1"] == "bn1"
        assert found["layer2.0.conv2"] == "layer2.0.bn2"


class TestGains:
    def test_later_entries_win_and_other_keys_stay(self):
        net = seeded(plain_net)
        entries = [{"op_types": ["Conv2d"], "min_channels": 2}, {"op_names": ["2"], "gain": 0.2}]
        gains, rest = layer_gains(net, entries, 0.1)
        assert gains == {"0": 0.1, "2": 0.2}
        assert rest == [entries[0], {"op_names": ["2"]}]

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ([{**CONVS[0], "gain": -1}], r"config_list\[0\]\.gain: -1 is not allowed"),
            ([*CONVS, {"op_names": ["0"], "gain": "x"}], r"config_list\[1\]\.gain: 'x'"),
            (
                [{**CONVS[0], "gian": 1}],
                r"config_list\[0\]: unknown key 'gian'; did you mean 'gain'",
            ),
            ([*CONVS, {"op_names": ["x"]}], r"config_list\[1\]\.op_names: 'x' matches no module"),
        ],
    )
    def test_mistakes_are_named_with_their_entry(self, config, said):
        with pytest.raises(ConfigError, match=said):
            GSparsityPruner(seeded(plain_net), config, dummy_input=SMALL)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"gain": -0.1}, "gain: -0.1 is not allowed"),
            ({"threshold": True}, "threshold: True is not allowed"),
            ({"normalization": "dvi"}, "unknown normalization 'dvi'; did you mean 'div'"),
            ({"score": "fold"}, "unknown score 'fold'; did you mean 'folded'"),
            ({"ramp": 0}, "ramp: 0 is not allowed"),
            ({"ramp": "a"}, "ramp: 'a' is not allowed"),
            ({"budget": {"macs": 0.001}}, "macs of 0.001 of dense"),
        ],
    )
    def test_options_are_checked(self, options, said):
        with pytest.raises((ConfigError, BudgetError), match=said):
            GSparsityPruner(seeded(plain_net), CONVS, dummy_input=SMALL, **options)

    def test_what_cannot_be_pruned_is_not_penalised(self, tmp_path):
        net = seeded(lambda: create_model("resnet8b", in_channels=1, width=0.25))
        config = [{"op_names_re": [r"layer\d\.0\.conv1$"]},
                  {"op_names": ["layer2.0.conv1"], "gain": 0.2},
                  {"op_names": ["layer1.0.conv2"]}]  # fmt: skip
        evaluator = loop_evaluator(net, tmp_path, name="ProxSGD", lr=0.01)
        pruner = Watched(net, config, evaluator, normalization="mul")
        assert list(pruner.skipped) == ["layer1.0.conv2"]
        pruner.compress(max_epochs=1)
        inner = [f"layer{i}.0.conv1" for i in (1, 2, 3)]
        expected = dict(zip(inner, (0.05, 0.2, 0.05), strict=True))
        assert pruner.seen[0]["gains"] == expected

    def test_the_optimizer_is_the_one_that_was_asked_for(self, tmp_path):
        found = {}

        class Looked(GSparsityPruner):
            def after_epoch(self, epoch):
                super().after_epoch(epoch)
                groups = [g for g in self.optimizer.param_groups if g["mu"]]
                found[self.options.normalization] = {g["normalization"] for g in groups}
                assert isinstance(self.optimizer, ProxSGD)
                assert self.optimizer.defaults["exact_zeros"]

        for rule in (None, "none"):
            net = normed_net()
            evaluator = loop_evaluator(
                net, tmp_path / str(rule), name="ProxSGD", normalization="mul", exact_zeros=True
            )
            Looked(net, CONVS, evaluator, normalization=rule).compress(max_epochs=1)
        assert found == {None: {"mul"}, "none": {"none"}}


class TestOtherOptimizers:
    def test_a_step_is_followed_by_the_proximal_map(self):
        filters = [torch.randn(4, 3, 2), torch.randn(3, 4, 2)]
        before = [f.clone() for f in filters]
        group = {"lr": 0.1, "mu": 2.0, "normalization": "div"}
        shorten_filters({**group, "params": [filters[0]], "filter_dim": 0})
        shorten_filters({**group, "params": [filters[1]], "filter_dim": 1})
        for now, was in zip((filters[0], filters[1].transpose(0, 1)),
                            (before[0], before[1].transpose(0, 1)), strict=True):  # fmt: skip
            for f, g in zip(now, was, strict=True):
                left = max(0, 1 - 0.2 / np.sqrt(6) / float(g.norm()))
                assert torch.allclose(f, left * g)

    def test_sgd_makes_exact_zeros_that_are_pruned(self, tmp_path):
        net = seeded(
            lambda: nn.Sequential(
                conv(1, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
            )
        )
        with_norms(net[0], [0.02] * 3 + [2.0] * 5)
        evaluator = loop_evaluator(net, tmp_path, 1, lr=0.05, weight_decay=0.0)
        pruner = GSparsityPruner(net, [{"op_names": ["0"]}], evaluator, gain=8.0)
        masks = pruner.compress(max_epochs=1)[1]
        norms = net[0]._nni_wrapper.weight.detach().flatten(1).norm(dim=1)
        assert (norms > 0).tolist() == [False] * 3 + [True] * 5
        assert alive(masks["0"]["weight"]).tolist() == (norms > 0).tolist()


class TestSilence:
    def train(self, folder, **options):
        net = normed_net()
        with_norms(net[0], [1.0] * 6 + [0.0] * 2)
        evaluator = loop_evaluator(net, folder, 2, name="ProxSGD", lr=1e-3)
        pruner = Watched(net, [{"op_names": ["0"]}], evaluator, gain=100.0, **options)
        return pruner, pruner.compress(max_epochs=2)[1]

    def test_the_dead_are_silent_from_the_end_of_their_epoch(self, tmp_path):
        pruner, masks = self.train(tmp_path)
        for found in (pruner.seen[0]["masks"], pruner.seen[1]["masks"], masks):
            assert alive(found["0"]["weight"]).tolist() == [True] * 6 + [False] * 2
            assert found["1"]["bias"].tolist() == [1.0] * 6 + [0.0] * 2
        net = pruner.bound_model.double().eval()
        x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            masked = net(x)
        pruner.unwrap_model()
        with torch.no_grad():
            # What the shift of the norm lets through of dead filters.
            assert not torch.allclose(net(x), masked, atol=1e-3)
            small = ModelSpeedup(net, x, masks).speedup_model()
            assert torch.allclose(small(x), masked, rtol=1e-9, atol=1e-11)

    def test_or_from_the_end_of_the_training(self, tmp_path):
        pruner, masks = self.train(tmp_path, silence=False)
        assert all(all(alive(found["masks"]["0"]["weight"]).tolist()) for found in pruner.seen)
        assert alive(masks["0"]["weight"]).tolist() == [True] * 6 + [False] * 2

    def test_no_more_than_a_ratio_asks_is_silenced(self, tmp_path):
        net = normed_net()
        with_norms(net[0], [1.0] * 4 + [0.0] * 4)
        evaluator = loop_evaluator(net, tmp_path, 1, name="ProxSGD", lr=1e-3)
        config = [{"op_names": ["0"], "sparse_ratio": 0.25}]
        pruner = Watched(net, config, evaluator, gain=100.0)
        masks = pruner.compress(max_epochs=1)[1]
        assert sum(alive(pruner.seen[0]["masks"]["0"]["weight"]).tolist()) == 6
        assert sum(alive(masks["0"]["weight"]).tolist()) == 6


def steer(folder, *, epochs=6, stop_at=None, resume=False, seed=0, budget=None, **options):
    """Train towards half the MACs; the filters of this training begin to die in its third epoch."""
    net = seeded(lambda: create_model("resnet8", in_channels=1, width=0.5), seed)
    optimizer = {"name": "ProxSGD", "lr": 0.05, "exact_zeros": True, **options.pop("optimizer", {})}
    evaluator = loop_evaluator(net, folder, epochs, resume=resume, **optimizer)
    pruner = Watched(
        net, CONVS, evaluator, budget=budget or {"macs": 0.5}, **{"gain": 0.5, **options}
    )
    after_step = pruner.after_step

    def stopping():
        after_step()
        if pruner.clock.step == stop_at:
            raise Stop

    pruner.after_step = stopping
    return pruner, pruner.compress(max_epochs=epochs)[1]


def share_of_macs(pruner, masks):
    pruner.unwrap_model()
    net = pruner.bound_model
    dense = count(net, DIGIT).macs
    return count(ModelSpeedup(net, DIGIT, masks).speedup_model(), DIGIT).macs / dense


class TestBudget:
    @pytest.mark.slow
    @pytest.mark.parametrize("measure", ["macs", "params"])
    def test_one_training_lands_on_it(self, tmp_path, measure):
        net = seeded(lambda: create_model("resnet14", in_channels=1))
        dense = count(net, DIGIT)
        evaluator = loop_evaluator(net, tmp_path, 3, name="ProxSGD", lr=0.05, exact_zeros=True)
        pruner = GSparsityPruner(net, CONVS, evaluator, budget={measure: 0.6}, gain=1.0)
        masks = pruner.compress(max_epochs=3)[1]
        pruner.unwrap_model()
        small = count(ModelSpeedup(net, DIGIT, masks, verify=False).speedup_model(), DIGIT)
        assert 0.99 < getattr(small, measure) / getattr(dense, measure) / 0.6 <= 1

    @pytest.mark.slow
    def test_the_dead_alone_can_meet_it(self, tmp_path, caplog):
        with caplog.at_level(logging.INFO):
            pruner, masks = steer(tmp_path, epochs=12, optimizer={"lr": 0.1})
        when = [seen["settled"] for seen in pruner.seen].index(True)
        assert 0 < when < 7
        assert f"after {when + 1} epochs the dead save 100% of what the budget asks" in caplog.text
        removed = ~torch.tensor(alive(masks["layer3.0.conv1"]["weight"]).tolist())
        assert removed.any()
        assert share_of_macs(pruner, masks) <= 0.5

    @pytest.mark.slow
    def test_when_it_is_met_masks_stay_and_nothing_is_penalised(self, tmp_path):
        pruner, masks = steer(tmp_path)
        settled = [seen["settled"] for seen in pruner.seen]
        first = settled.index(True)
        assert settled == [False] * first + [True] * (6 - first)
        for seen in pruner.seen[first:]:
            assert set(seen["gains"].values()) == {0.0}
            for module, targets in seen["masks"].items():
                assert all(torch.equal(m, masks[module][t]) for t, m in targets.items())
        assert all(min(seen["gains"].values()) > 0 for seen in pruner.seen[:first])

    @pytest.mark.slow
    def test_at_the_end_of_the_ramp_the_living_make_up_for_the_rest(self, tmp_path, caplog):
        with caplog.at_level(logging.INFO):
            pruner, masks = steer(tmp_path, optimizer={"lr": 1e-5}, ramp=0.5)
        assert [seen["settled"] for seen in pruner.seen] == [False] * 2 + [True] * 4
        assert "after 3 epochs the dead save 0% of what the budget asks for" in caplog.text
        assert 0.45 < share_of_macs(pruner, masks) <= 0.5

    @pytest.mark.slow
    def test_the_gain_rises_while_nothing_dies(self, tmp_path):
        pruner, _ = steer(tmp_path, optimizer={"name": "SGD", "lr": 1e-6}, gain=0.1)
        gains = [next(iter(seen["gains"].values())) for seen in pruner.seen]
        assert gains[:3] == pytest.approx([0.2, 0.4, 0.8])

    @pytest.fixture(scope="class", params=[{}, {"optimizer": {"name": "SGD"}, "gain": 15.0}])
    def whole(self, request, tmp_path_factory):
        """A training that runs through, and its options."""
        return request.param, *steer(tmp_path_factory.mktemp("whole"), **request.param)

    @pytest.mark.slow
    @pytest.mark.parametrize("stop_at", [8, 14, 27])
    def test_killed_and_resumed_it_ends_the_same(self, tmp_path, stop_at, whole):
        """Within the way, and when the budget is met."""
        options, pruner, masks = whole
        with pytest.raises(Stop):
            steer(tmp_path / "cut", stop_at=stop_at, **options)
        resumed, again = steer(tmp_path / "cut", resume=True, seed=5, **options)
        assert len(resumed.seen) == 6 - stop_at // 5
        for one, two in zip(reversed(pruner.seen), reversed(resumed.seen), strict=False):
            assert [one["began_settled"], one["gains"]] == [two["began_settled"], two["gains"]]
        for module, targets in masks.items():
            assert all(
                torch.equal(m, again[module][t]) for t, m in targets.items() if m is not None
            )
        one, two = pruner.bound_model.state_dict(), resumed.bound_model.state_dict()
        mine = [name for name in one if "_nni_wrapper" in name or "running" in name]
        assert all(torch.equal(one[name], two[name]) for name in mine)

    @pytest.mark.slow
    def test_a_schedule_goes_before_the_way_to_the_budget(self, tmp_path):
        pruner, masks = steer(tmp_path, schedule={"name": "linear", "end": 4})
        assert not pruner.settled
        assert {gain for seen in pruner.seen for gain in seen["gains"].values()} == {0.5}
        assert share_of_macs(pruner, masks) <= 0.5

    @pytest.mark.slow
    def test_two_processes_go_the_same_way(self, tmp_path):
        (alone,) = written_by_ranks("gsparsity_process.py", tmp_path / "one", "said", 1)
        first, second = written_by_ranks("gsparsity_process.py", tmp_path / "two", "said", 2)
        assert first == second
        assert first["masks"] == alone["masks"]
        assert first["gains"] == pytest.approx(alone["gains"], rel=1e-3)

    @pytest.mark.slow
    def test_latency_can_be_the_budget(self, tmp_path, clock):
        net = seeded(lambda: create_model("resnet8", in_channels=1, width=0.5))
        evaluator = loop_evaluator(net, tmp_path, 1, name="ProxSGD", lr=0.05)
        pruner = GSparsityPruner(net, CONVS, evaluator, budget={"latency": 0.9})
        assert pruner.compress(max_epochs=1)[1]
        assert clock
        assert pruner.settled


class TestControl:
    def test_factors(self):
        # Ten epochs for 0.05 of the norm: 0.741 of it is left after each.
        assert gain_factor(1 - 0.05**0.1, 10) == pytest.approx(1)
        assert gain_factor(0.0, 10) == gain_factor(-0.5, 10) == 2
        assert gain_factor(0.99, 10) == 0.5
        assert gain_factor(0.5, 0) == pytest.approx(0.95 / 0.5)
        assert gain_factor(0.09, 3, possible=0.1) == 1.0
        assert gain_factor(0.05, 3, possible=0.1) == 2.0

    def test_losses_of_filters_that_come_back(self):
        lost = loss_of_norm(
            np.array([0.0, 1.0, 5.0]), np.array([1.0, 0.25, 0.0]), np.array([True, True, False])
        )
        assert lost.tolist() == [-1.0, 0.75]

    def test_spread(self):
        spread = NormSpread.of([np.array([1.0, 1e-5, 1.1e-5, 0.09, 0.1]), np.full(3, 1e-7)])
        assert (spread.dead, spread.between, spread.total) == (4, 2, 8)

    def test_a_spread_that_is_no_two_heaps_is_a_warning(self, tmp_path, caplog):
        for norms, level in (([1.0] * 6 + [0.0] * 2, "INFO"), ([1.0] * 6 + [0.01] * 2, "WARNING")):
            caplog.clear()
            net = normed_net()
            with_norms(net[0], norms)
            evaluator = loop_evaluator(net, tmp_path, 1, name="ProxSGD", lr=1e-6)
            with caplog.at_level(logging.INFO):
                GSparsityPruner(net, [{"op_names": ["0"]}], evaluator).compress(max_epochs=1)
            said = [r for r in caplog.records if "filters are dead" in r.getMessage()]
            assert [r.levelname for r in said] == [level]


class TestPlainEvaluator:
    def evaluator(self, net, scheduler=None):
        def train(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
            generator = torch.Generator().manual_seed(0)
            for _ in range(max_epochs):
                for _ in range(3):
                    optimizer.zero_grad()
                    training_step(torch.randn(8, 1, 8, 8, generator=generator), model).backward()
                    optimizer.step()
                if lr_scheduler is not None:
                    lr_scheduler.step()

        optimizer = nni.trace(ProxSGD)(net.parameters(), lr=0.01)
        schedulers = scheduler(optimizer) if scheduler else None
        return TorchEvaluator(
            train, optimizer, lambda batch, model: model(batch).square().mean(),
            lr_schedulers=schedulers, dummy_input=DIGIT,
        )  # fmt: skip

    def test_it_works_with_a_scheduler_of_torch(self):
        net = normed_net()
        evaluator = self.evaluator(
            net, lambda o: nni.trace(torch.optim.lr_scheduler.LambdaLR)(o, lambda e: 0.5**e)
        )
        evaluator.steps_per_epoch = 3
        pruner = Watched(net, CONVS, evaluator, budget={"macs": 0.6})
        masks = pruner.compress(max_epochs=2)[1]
        assert pruner.seen[-1]["settled"]
        assert share_of_macs(pruner, masks) <= 0.6

    def test_a_budget_needs_epochs(self):
        net = normed_net()
        pruner = GSparsityPruner(net, CONVS, self.evaluator(net), budget={"macs": 0.6})
        with pytest.raises(ConfigError, match="does not say how long an epoch is"):
            pruner.compress(max_epochs=1)

    def test_a_budget_needs_to_know_how_many(self):
        net = normed_net()
        evaluator = self.evaluator(net)
        evaluator.steps_per_epoch = 3
        pruner = GSparsityPruner(net, CONVS, evaluator, budget={"macs": 0.6})
        with pytest.raises(ConfigError, match=r"budget: give compress\(\) max_epochs"):
            pruner.compress(max_steps=3)

    def test_without_a_gain_the_budget_is_met_by_rank(self, tmp_path):
        pruner, masks = steer(tmp_path, epochs=2, gain=0)
        assert share_of_macs(pruner, masks) <= 0.5

    def test_a_gain_needs_none(self):
        net = normed_net()
        pruner = GSparsityPruner(net, [{"op_names": ["0"]}], self.evaluator(net), gain=1e4)
        before = net[0]._nni_wrapper.weight.norm().item()
        pruner.compress(max_epochs=1)
        # Three steps, of which each takes the lr, 0.01, off filters whose proximal point is zero.
        assert net[0]._nni_wrapper.weight.norm().item() == pytest.approx(0.99**3 * before)


def test_a_transposed_convolution_dies_by_its_output_channels(tmp_path):
    net = seeded(
        lambda: nn.Sequential(
            conv(1, 4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3), nn.ReLU(), conv(6, 4), nn.Flatten(),
            nn.Linear(400, 10),
        )
    )  # fmt: skip
    evaluator = loop_evaluator(net, tmp_path, 1, name="ProxSGD", lr=1e-3)
    found = []

    class Looked(GSparsityPruner):
        def after_epoch(self, epoch):
            super().after_epoch(epoch)
            found.extend(g["filter_dim"] for g in self.optimizer.param_groups if g["mu"])

    net[2].weight.data[:, 1] = 0
    masks = Looked(net, [{"op_names": ["2"]}], evaluator, gain=50.0).compress(max_epochs=1)[1]
    assert found == [1]
    assert alive(masks["2"]["weight"], dim=1).tolist() == [True, False, True, True, True, True]


def test_a_network_trained_elsewhere_is_pruned_as_it_is():
    net = randomised(seeded(lambda: GroupBlock(channels=1))).double()
    for layer in (net.stem, net.conv3):
        layer.weight.data[[1, 5]] = 0
    pruner = GSparsityPruner(net, [{"op_types": ["Conv2d"]}], dummy_input=DIGIT.double())
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    assert ModelSpeedup(net, DIGIT.double(), masks).speedup_model().stem.out_channels == 14


def test_the_folded_score_of_a_layer_without_a_norm_is_its_own():
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    net[0].weight.data = (
        torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]).view(6, 1, 1, 1).repeat(1, 1, 3, 3)
    )
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    masks = GSparsityPruner(net, config, score="folded").compress()[1]
    assert masks["0"]["bias"].tolist() == [1, 0, 1, 0, 0, 1]


@pytest.mark.slow
def test_the_shipped_recipe_removes_filters_of_a_resnet50(tmp_path):
    """The inner convolutions of its bottlenecks, and nothing else; small images, a large gain."""
    recipe = load_recipe(CONFIGS / "gsparsity" / "imagenet-resnet50-conv12.yml", {})
    config = [{**entry, "gain": 1e5 * entry["gain"]} for entry in recipe.prune.config_list]
    net = seeded(lambda: create_model("torchvision:resnet50", num_classes=10, in_channels=1))
    dense = {n: m.out_channels for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    evaluator = loop_evaluator(net, tmp_path, batch=4, train_size=28, name="ProxSGD", lr=0.99)
    # Seven steps in place of 450,000: what dies has become small, not yet as small as it will be.
    options = {**recipe.prune.options, "threshold": 1e-3}
    pruner = GSparsityPruner(net, config, evaluator, dummy_input=DIGIT, **options)
    masks = pruner.compress(max_epochs=1)[1]
    pruner.unwrap_model()
    speedup = ModelSpeedup(net.double(), DIGIT.double(), masks)  # large numbers, after such steps
    speedup.speedup_model()
    removed = {layer.name: layer.removed for layer in speedup.report().layers if layer.removed}
    inner = {name for name in removed if name in dense}
    assert len(inner) >= 16
    assert all(name.endswith(("conv1", "conv2")) and "layer" in name for name in inner)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and name.endswith(("conv3", "downsample.0")):
            assert module.out_channels == dense[name]
    left = sum(p.numel() for p in net.parameters())
    assert 0.2e7 < left < 1.8e7  # of 23.5 million
