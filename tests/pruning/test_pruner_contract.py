"""What every pruner promises; a new one is added in pruner_cases.py."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from mask_process import digests
from mask_tools import alive, seeded, widths
from processes import HERE, run
from pruner_cases import HAVE_A_GOAL, PRUNERS, taken_apart
from pruning_nets import GroupBlock, conv, mobile_net, plain_net, randomised
from torch import nn

from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.profiling import count
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.zoo import create_model

HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
CONVS = [{"op_types": ["Conv2d"]}]
SMALL = torch.zeros(1, 3, 8, 8)
IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.fixture(params=PRUNERS)
def make(request):
    """The class of a pruner, or what makes one of it with its options."""
    return PRUNERS[request.param]


def resnet(kind="A", depth=8, width=0.5):
    return seeded(lambda: create_model(f"resnet{depth}", shortcut=kind, width=width))


class Skip(nn.Module):
    """Two convolutions whose outputs are added."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(1, 4, 1, bias=False)
        self.head = nn.Conv2d(4, 2, 1)
        self.a.weight.data = torch.tensor(first).view(4, 1, 1, 1)
        self.b.weight.data = torch.tensor(second).view(4, 1, 1, 1)

    def forward(self, x):
        return self.head(self.a(x) + self.b(x))


class TestIdiom:
    def test_masks_have_the_format_of_nni(self, make):
        net = seeded(plain_net)
        pruner = make(net, HALF, dummy_input=SMALL)
        returned, masks = pruner.compress()
        assert returned is net
        assert {"0", "2", "3"} <= set(masks)
        assert set(masks["0"]) == set(masks["3"]) == {"weight", "bias"}
        for name, targets in masks.items():
            module = net.get_submodule(name)._nni_wrapper.module
            for target, mask in targets.items():
                if mask is None:
                    assert getattr(module, target, None) is None
                    continue
                assert mask.shape == pruner._target_spaces[name][target].target.shape
                assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert widths(masks, "0", "2") == [6, 4]
        assert torch.equal(masks["2"]["weight"][:, 0, 0, 0], masks["3"]["bias"])
        assert torch.equal(masks["3"]["weight"], masks["3"]["bias"])

    def test_unwrap_gives_the_model_back(self, make):
        net = seeded(plain_net).eval()
        before = copy.deepcopy(net.state_dict())
        pruner = make(net, HALF, dummy_input=SMALL)
        assert not net.training
        pruner.compress()
        with torch.no_grad():
            net(torch.randn(2, 3, 8, 8))
        pruner.unwrap_model()
        after = net.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[key], before[key]) for key in before)

    def test_from_compressor_adds_layers(self, make):
        net = seeded(plain_net)
        x = torch.randn(2, 3, 8, 8)
        first = make(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], dummy_input=SMALL)
        first.compress()
        kind, options = taken_apart(make)
        config = [{"op_names": ["2"], "sparse_ratio": 0.75}]
        second = kind.from_compressor(first, config, dummy_input=SMALL, **options)
        masks = second.compress()[1]
        assert widths(masks, "0", "2") == [6, 2]
        net.eval()
        with torch.no_grad():
            masked = net(x)
        second.unwrap_model()
        assert not any("_nni" in name for name in net.state_dict())
        small = ModelSpeedup(net, SMALL, masks).speedup_model()
        with torch.no_grad():
            assert torch.allclose(small(x), masked, atol=1e-5)

    def test_from_compressor_refuses_layers_that_are_masked_already(self, make):
        first = make(seeded(plain_net), HALF, dummy_input=SMALL)
        kind, options = taken_apart(make)
        with pytest.raises(ConfigError, match="from_compressor: 2 is masked by the earlier pruner"):
            config = [{"op_names": ["2"], "sparse_ratio": 0.75}]
            kind.from_compressor(first, config, dummy_input=SMALL, **options)

    def test_a_wrapped_model_is_refused(self, make):
        net = seeded(plain_net)
        make(net, HALF, dummy_input=SMALL)
        with pytest.raises(ConfigError, match="wrapped by another pruner: use from_compressor"):
            make(net, HALF, dummy_input=SMALL)

    def test_an_input_is_found_where_none_is_given(self, make):
        assert widths(make(seeded(plain_net), HALF[:], dummy_input=SMALL).compress()[1], "0") == [6]
        net = seeded(lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))
        assert widths(make(net, HALF).compress()[1], "0") == [4]


class TestErrors:
    @pytest.mark.parametrize(
        ("config", "options", "said"),
        [
            ([{"op_types": ["Conv2d"], "sparse_ratio": 1.5}], {}, "sparse_ratio: 1.5"),
            ([{"op_types": ["Conv2"], "sparse_ratio": 0.5}], {}, "'Conv2' matches no module type"),
            (
                HALF,
                {"coupling": "median"},
                r"coupling: unknown coupling 'median'.*\(allowed: mean, max, union\)",
            ),
            (HALF, {"budget": {"macs": 0.5}}, "budget: 0 has a sparse_ratio too"),
            (
                [{"op_names": ["0"], "sparse_threshold": 0.5}],
                {"budget": {"macs": 0.5}},
                "budget: 0 has a sparse_threshold too",
            ),
            (CONVS, {"budget": {"flops": 0.5}}, "budget: unknown measure 'flops'"),
            (CONVS, {"budget": {"macs": 0.5}, "dummy_input": None}, "budget: needs dummy_input="),
        ],
    )
    def test_a_mistake_is_a_config_error_and_leaves_the_model_unwrapped(
        self, make, config, options, said
    ):
        net = seeded(plain_net)
        with pytest.raises(ConfigError, match=said) as caught:
            make(net, config, **{"dummy_input": SMALL, **options})
        assert "\n" not in str(caught.value)
        assert not any("_nni" in name for name in net.state_dict())

    @pytest.mark.parametrize(
        ("given", "said"),
        [(None, "NoneType"), ("resnet18", "str"), (nn.ReLU, r"the class ReLU: give ReLU\(\)")],
    )
    def test_what_is_no_model(self, make, given, said):
        with pytest.raises(ConfigError, match=f"model: expected a torch.nn.Module, got {said}"):
            make(given, HALF)

    def test_a_layer_without_a_goal(self, make):
        if make in HAVE_A_GOAL:
            pytest.skip("needs none")
        with pytest.raises(ConfigError, match="0 has neither sparse_ratio nor sparse_threshold"):
            make(seeded(plain_net), CONVS, dummy_input=SMALL)

    def test_training_without_an_evaluator(self, make):
        with pytest.raises(ConfigError, match="need an evaluator="):
            make(seeded(plain_net), HALF, dummy_input=SMALL).compress(max_epochs=1)

    def test_an_unknown_option_is_a_type_error(self, make):
        with pytest.raises(TypeError, match="norm_ration"):
            make(seeded(plain_net), HALF, norm_ration=0.5)


class TestCoupling:
    @pytest.mark.parametrize("kind", ["A", "B"])
    def test_coupled_layers_share_one_mask(self, make, kind):
        pruner = make(resnet(kind), HALF, dummy_input=IMAGE)
        masks = pruner.compress()[1]
        shared = 0
        for coupled in pruner.sets:
            kept = []
            for member in coupled.members:
                rows = alive(masks[member.module]["weight"], member.dim)[member.rows]
                unit = torch.zeros(coupled.size)
                unit[member.units] = rows.float()
                kept.append(unit)
            shared += len(kept) > 1
            assert all(torch.equal(k, kept[0]) for k in kept)
            assert int(kept[0].sum()) == coupled.size // 2
        assert shared
        assert torch.equal(
            alive(masks["conv_1_3x3" if "conv_1_3x3" in masks else "conv1"]["weight"]),
            alive(masks["layer1.0.conv2"]["weight"]),
        )

    def test_an_excluded_layer_keeps_what_is_coupled_to_it(self, make, caplog):
        config = [{**HALF[0], "exclude_op_names": ["layer1.0.conv2"]}]
        with caplog.at_level(logging.WARNING):
            pruner = make(resnet("B"), config, dummy_input=IMAGE)
        reason = "its channels are coupled to layer1.0.conv2, which the config_list excludes"
        assert pruner.skipped["conv1"] == reason
        assert f"not pruned: conv1: {reason}" in caplog.text
        masks = pruner.compress()[1]
        assert bool(alive(masks["conv1"]["weight"]).all())
        assert not bool(alive(masks["layer1.0.conv1"]["weight"]).all())

    def test_nothing_left_to_prune(self, make):
        config = [{"op_names": ["layer1.0.conv2"], "sparse_ratio": 0.5}]
        with pytest.raises(
            ConfigError, match=r"nothing can be pruned: layer1\.0\.conv2: its channels"
        ):
            make(resnet("B"), config, dummy_input=IMAGE)

    def test_outputs_stay(self, make):
        net = seeded(lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))
        pruner = make(net, HALF, dummy_input=SMALL)
        assert pruner.skipped == {"2": "an output of the model"}

    @pytest.mark.parametrize("loud", [nn.Sigmoid(), nn.Softplus()])
    def test_channels_that_no_mask_can_silence_stay(self, make, loud):
        net = seeded(lambda: nn.Sequential(conv(3, 8), loud, conv(8, 6), nn.ReLU(), conv(6, 4)))
        pruner = make(net, HALF, dummy_input=SMALL)
        assert "into a constant that 2 reads" in pruner.skipped["0"]
        assert bool(alive(pruner.compress()[1]["2"]["weight"]).sum() == 3)

    def test_a_norm_without_scale_keeps_its_channels(self, make):
        bare = nn.BatchNorm2d(8, affine=False)
        bare.running_mean.fill_(-1.0)
        net = seeded(
            lambda: nn.Sequential(conv(3, 8), bare, nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4))
        )
        assert "0" in make(net, HALF, dummy_input=SMALL).skipped

    def test_rules(self, make):
        """The sum of two layers, one of which holds every channel but two for weak."""
        weights = [9.0, 1.0, 2.0, 8.0], [1.0, 1.5, 10.0, 8.0]
        kept = {}
        for rule in ("mean", "max", "union"):
            config = [{"op_names": ["a", "b"], "sparse_ratio": 0.5}]
            pruner = make(
                Skip(*weights), config, coupling=rule, dummy_input=torch.zeros(1, 1, 4, 4)
            )
            masks = pruner.compress()[1]
            kept[rule] = alive(masks["a"]["weight"])
            assert torch.equal(kept[rule], alive(masks["b"]["weight"]))
        assert int(kept["mean"].sum()) == int(kept["max"].sum()) == 2
        assert int(kept["union"].sum()) >= 2


class TestSilence:
    @pytest.mark.parametrize(
        ("build", "shape"),
        [
            (plain_net, (3, 8, 8)),
            (mobile_net, (3, 16, 16)),
            (GroupBlock, (3, 16, 16)),
            (lambda: create_model("resnet8", width=0.5), (3, 16, 16)),
            (lambda: create_model("resnet8b", width=0.5), (3, 16, 16)),
            (lambda: create_model("densenet10"), (3, 8, 8)),
        ],
        ids=["plain", "depthwise", "grouped", "residual-A", "residual-B", "dense"],
    )
    def test_the_masked_network_is_the_small_network(self, make, build, shape):
        net = randomised(seeded(build)).double().eval()
        x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        pruner = make(net, HALF, dummy_input=x)
        _, masks = pruner.compress()
        with torch.no_grad():
            masked = net(x)
        pruner.unwrap_model()
        with torch.no_grad():
            dense = net(x)
        speedup = ModelSpeedup(net, x, masks)
        small = speedup.speedup_model()
        with torch.no_grad():
            found = small(x)
        assert torch.allclose(found, masked, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(found, dense, rtol=1e-2)
        assert speedup.report().notes == ()
        for coupled in pruner.sets:
            for member in coupled.members:
                kept = int(alive(masks[member.module]["weight"], member.dim).sum())
                assert small.get_submodule(member.module).weight.shape[member.dim] == kept


class TestBudget:
    @pytest.mark.parametrize("measure", ["macs", "params"])
    def test_each_measure_is_met_within_one_percent(self, make, measure):
        net = resnet("A", depth=14, width=1)
        pruner = make(net, CONVS, dummy_input=IMAGE, budget={measure: 0.5})
        _, masks = pruner.compress()
        removed = pruner.coupling.empty()
        for coupled in pruner.sets:
            member = coupled.members[0]
            kept = alive(masks[member.module]["weight"], member.dim).numpy()[member.rows]
            removed[coupled.classes[member.units[~kept]]] = True
        assert 0.99 < pruner.cost(measure, removed) / pruner.cost.dense(measure) / 0.5 <= 1

    @pytest.mark.slow
    def test_the_small_model_is_inside_both_and_within_one_percent_of_one(self, make):
        budget = {"macs": 0.6, "params": 0.4}
        net = resnet("A", depth=14, width=1)
        before = count(net, IMAGE)
        pruner = make(net, CONVS, dummy_input=IMAGE, budget=budget)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        after = count(ModelSpeedup(net, IMAGE, masks, verify=False).speedup_model(), IMAGE)
        left = {m: getattr(after, m) / getattr(before, m) / share for m, share in budget.items()}
        assert max(left.values()) <= 1
        assert max(left.values()) > 0.99

    def test_a_count_is_a_budget_too(self, make):
        net = seeded(plain_net)
        pruner = make(net, CONVS, dummy_input=SMALL, budget={"params": 900})
        masks = pruner.compress()[1]
        pruner.unwrap_model()
        small = ModelSpeedup(net, SMALL, masks).speedup_model()
        assert sum(p.numel() for p in small.parameters()) <= 900

    def test_a_budget_met_by_the_dense_model_removes_nothing(self, make):
        masks = make(seeded(plain_net), CONVS, dummy_input=SMALL, budget={"macs": 1.0}).compress()[
            1
        ]
        assert all(bool(m.all()) for t in masks.values() for m in t.values() if m is not None)

    def test_what_cannot_be_reached_is_said_at_once_with_what_can(self, make):
        config = [{"op_names": ["0"], "max_sparse_ratio": 0.5}]
        said = (
            r"budget: macs of 0.200 of dense \([\d,]+\) cannot be reached; the selected layers "
            r"allow macs of 0.50\d of dense \([\d,]+\) at the least"
        )
        with pytest.raises(BudgetError, match=said):
            make(seeded(plain_net), config, dummy_input=SMALL, budget={"macs": 0.2})

    def test_floors_and_multiples_hold(self, make):
        config = [{**CONVS[0], "min_channels": 5, "round_to": 4}]
        pruner = make(resnet("B", width=1), config, dummy_input=IMAGE, budget={"macs": 0.4})
        masks = pruner.compress()[1]
        assert len(pruner.skipped) == 0
        for coupled in pruner.sets:
            member = coupled.members[0]
            kept = int(alive(masks[member.module]["weight"], member.dim)[member.rows].sum())
            assert kept == coupled.size or (kept >= 5 and kept % 4 == 0)


class TestRatios:
    @pytest.mark.parametrize("rule", ["mean", "max", "union"])
    def test_floors_and_multiples_hold_under_every_rule(self, make, rule):
        config = [{**HALF[0], "sparse_ratio": 0.7, "min_channels": 6, "round_to": 4}]
        # Scales of trained norms differ; the union rule of slimming keeps all where they tie.
        net = randomised(resnet("B", width=1))
        pruner = make(net, config, dummy_input=IMAGE, coupling=rule)
        masks = pruner.compress()[1]
        went = 0
        for coupled in pruner.sets:
            member = coupled.members[0]
            kept = int(alive(masks[member.module]["weight"], member.dim)[member.rows].sum())
            went += coupled.size - kept
            assert kept >= 6
            assert kept % 4 == 0
        assert went

    @pytest.mark.parametrize("rule", ["mean", "max", "union"])
    def test_groups_stay_equally_wide_under_every_rule(self, make, rule):
        pruner = make(randomised(seeded(GroupBlock)), HALF, dummy_input=SMALL, coupling=rule)
        masks = pruner.compress()[1]
        kept = alive(masks["conv2"]["weight"]).view(4, 6).sum(1)
        assert len(set(kept.tolist())) == 1
        assert int(kept[0]) < 6

    def test_global_groups_rank_layers_together(self, make):
        config = [{**HALF[0], "global_group_id": 1, "max_sparse_ratio": 0.75}]
        pruner = make(resnet("B", width=1), config, dummy_input=IMAGE)
        masks = pruner.compress()[1]
        shares, total = [], 0
        for coupled in pruner.sets:
            member = coupled.members[0]
            kept = int(alive(masks[member.module]["weight"], member.dim)[member.rows].sum())
            shares.append(1 - kept / coupled.size)
            total += coupled.size - kept
        assert total == sum(s.size for s in pruner.sets) // 2
        assert max(shares) <= 0.75
        assert len(set(shares)) > 1


class TestDeterminism:
    def test_same_weights_same_masks_bit_for_bit(self, make):
        found = []
        for _ in range(2):
            pruner = make(resnet(), CONVS, dummy_input=IMAGE, budget={"macs": 0.5})
            found.append(pruner.compress()[1])
        assert list(found[0]) == list(found[1])
        for module, targets in found[0].items():
            assert all(
                torch.equal(m, found[1][module][t]) for t, m in targets.items() if m is not None
            )

    @pytest.mark.slow
    def test_the_masks_do_not_depend_on_the_process(self):
        # Three interpreters: of hash seed 1, that of the other processes, and this one.
        path = os.pathsep.join([str(HERE), str(HERE.parents[1]), *filter(None, sys.path)])
        fresh = subprocess.run(
            [sys.executable, str(HERE / "mask_process.py")],
            env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        both = (fresh.stdout, run("mask_process.py").said)
        said = [json.loads(text.splitlines()[-1]) for text in both]
        assert said[0] == said[1] == digests()
