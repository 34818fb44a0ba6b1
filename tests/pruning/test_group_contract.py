"""What both group pruners promise beside what the channel pruners do; see pruner_cases.py."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from mask_tools import Stop, seeded
from nni.compression.pruning import AGPPruner, LinearPruner
from processes import written_by_ranks
from pruner_cases import GROUP_PRUNERS, taken_apart
from pruning_nets import GroupBlock, conv, loop_evaluator, mobile_net, plain_net, randomised
from torch import nn

from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.zoo import create_model

CONVS = [{"op_types": ["Conv2d"]}]
TWO = [{"op_types": ["Conv2d"], "num_groups": 2}]
SMALL = torch.zeros(1, 3, 8, 8)
DIGIT = torch.zeros(1, 1, 8, 8)


@pytest.fixture(params=["gconv", "shuffle"], scope="module")
def make(request):
    """The class of a pruner, or what makes one of it with its options."""
    return GROUP_PRUNERS[request.param]


def chain():
    return seeded(
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 16), nn.ReLU())
    )


def groups_of(model):
    return [m.groups for m in model.modules() if isinstance(m, nn.Conv2d)]


def assert_small_equals_masked(net, pruner, masks, example, *, zeroed=False):
    """`zeroed`: the weights that are masked are zero already, by training with the masks."""
    x = torch.randn(
        2, *example.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    net.double().eval()
    with torch.no_grad():
        masked = net(x)
        pruner.unwrap_model()
        dense = net(x)
        speedup = ModelSpeedup(net, x, masks)
        small = speedup.speedup_model()
        assert torch.allclose(small(x), masked, rtol=1e-9, atol=1e-11)
        assert torch.allclose(masked, dense, rtol=1e-2) == zeroed
    assert speedup.report().notes == ()
    return small


class TestIdiom:
    def test_masks_have_the_format_of_nni(self, make):
        net = chain()
        pruner = make(net, TWO, dummy_input=SMALL)
        returned, masks = pruner.compress()
        assert returned is net
        assert set(masks) == {"2", "4"} == set(pruner.get_masks())
        for name, targets in masks.items():
            mask = targets["weight"]
            assert mask.shape == pruner._target_spaces[name]["weight"].target.shape
            assert set(mask.unique().tolist()) == {0.0, 1.0}
            assert float(mask.mean()) == 0.5

    def test_unwrap_gives_the_model_back(self, make):
        net = chain()
        before = copy.deepcopy(net.state_dict())
        pruner = make(net, TWO, dummy_input=SMALL)
        pruner.compress()
        pruner.unwrap_model()
        assert list(net.state_dict()) == list(before)
        assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)

    def test_from_compressor_adds_layers(self, make):
        net = chain()
        first = make(net, [{"op_names": ["2"], "num_groups": 2}], dummy_input=SMALL)
        first.compress()
        config = [{"op_names": ["4"], "num_groups": 4}]
        kind, options = taken_apart(make)
        second = kind.from_compressor(first, config, dummy_input=SMALL, **options)
        masks = second.compress()[1]
        assert groups_of(assert_small_equals_masked(net, second, masks, SMALL)) == [1, 2, 4]

    def test_from_compressor_refuses_layers_that_are_masked_already(self, make):
        first = make(chain(), TWO, dummy_input=SMALL)
        with pytest.raises(ConfigError, match="from_compressor: 4 is masked by the earlier pruner"):
            kind, options = taken_apart(make)
            config = [{"op_names": ["4"], "num_groups": 4}]
            kind.from_compressor(first, config, dummy_input=SMALL, **options)

    @pytest.mark.parametrize("seed", range(3))
    def test_channels_pruned_before_are_left_out_of_groups(self, make, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 16), nn.ReLU())
        first = FPGMPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], dummy_input=SMALL)
        first.compress()
        config = [{"op_names": ["2", "4"], "num_groups": 2}]
        if make is ShufflePruner:
            with pytest.raises(ConfigError, match=r"from_compressor: .* silences channels of 2;"):
                make.from_compressor(first, config, dummy_input=SMALL)
            return
        kind, options = taken_apart(make)
        second = kind.from_compressor(first, config, dummy_input=SMALL, **options)
        small = assert_small_equals_masked(net, second, second.compress()[1], SMALL)
        assert [small[0].out_channels, *groups_of(small)] == [4, 1, 2, 2]

    @pytest.mark.parametrize("seed", range(3))
    def test_groups_made_before_stay_equally_wide(self, make, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 16), nn.ReLU())
        first = make(net, [{"op_names": ["4"], "num_groups": 2}], dummy_input=SMALL)
        first.compress()
        config = [{"op_names": ["2"], "sparse_ratio": 0.5}]
        second = FPGMPruner.from_compressor(first, config, dummy_input=SMALL)
        small = assert_small_equals_masked(net, second, second.compress()[1], SMALL)
        assert [small[2].out_channels, *groups_of(small)] == [4, 1, 1, 2]

    def test_a_wrapped_model_is_refused(self, make):
        net = chain()
        make(net, TWO, dummy_input=SMALL)
        with pytest.raises(ConfigError, match="the model is wrapped by another pruner"):
            make(net, TWO, dummy_input=SMALL)


class TestErrors:
    @pytest.mark.parametrize(
        ("config", "options", "said"),
        [
            ([{"op_types": ["Conv2"], "num_groups": 2}], {}, "'Conv2' matches no module type"),
            ([{"op_names": ["2"], "num_groups": 0}], {}, "num_groups"),
            ([{"op_names": ["2"], "num_group": 2}], {}, "num_groups"),
            ([{"op_names": ["0"], "num_groups": 2}], {}, "its 3 input channels are the colours"),
            (CONVS, {}, "neither num_groups nor max_group_size"),
            (CONVS, {"budget": {"flops": 0.5}}, "budget: unknown measure 'flops'"),
            (CONVS, {"budget": {"macs": -1}}, "budget.macs: -1 is not a positive number"),
            (CONVS, {"budget": {"macs": 0.5}, "sharing": "stream"}, "streams"),
        ],
    )
    def test_a_mistake_is_one_line_and_leaves_the_model_unwrapped(
        self, make, config, options, said
    ):
        net = chain()
        with pytest.raises(ConfigError, match=said) as caught:
            make(net, config, dummy_input=SMALL, **options)
        assert "\n" not in str(caught.value)
        assert not any("_nni" in name for name in net.state_dict())

    def test_what_is_no_model(self, make):
        with pytest.raises(ConfigError, match=r"model: expected a torch\.nn\.Module, got N"):
            make(None, TWO)

    def test_training_without_an_evaluator(self, make):
        with pytest.raises(ConfigError, match="need an evaluator="):
            make(chain(), TWO, dummy_input=SMALL).compress(max_epochs=1)


@pytest.mark.parametrize("build", [plain_net, mobile_net, GroupBlock, chain])
def test_the_masked_network_is_the_small_one(make, build):
    net = randomised(seeded(build))
    pruner = make(net, TWO, dummy_input=SMALL)
    small = assert_small_equals_masked(net, pruner, pruner.compress()[1], SMALL)
    assert max(groups_of(small)) > 1


class TestBudget:
    @pytest.mark.slow
    @pytest.mark.parametrize("budget", [{"params": 0.4}, {"macs": 0.6, "params": 0.5}])
    def test_it_is_met_within_one_percent(self, make, budget):
        net = seeded(lambda: create_model("resnet14", in_channels=1, width=0.5), 2)
        before = count(net, DIGIT)
        pruner = make(net, CONVS, dummy_input=DIGIT, budget=budget)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        after = count(ModelSpeedup(net, DIGIT, masks, verify=False).speedup_model(), DIGIT)
        left = {m: getattr(after, m) / getattr(before, m) / share for m, share in budget.items()}
        assert 0.99 <= max(left.values()) <= 1

    def test_what_cannot_be_reached_is_said_with_what_can(self, make):
        said = r"budget: macs of 0.010 of dense \([\d,]+\) cannot be reached; .* reach 0\.\d+"
        with pytest.raises(BudgetError, match=said):
            make(chain(), CONVS, dummy_input=SMALL, budget={"macs": 0.01})


def ramp(make, folder, *, stop_at=None, resume=False, seed=0, epochs=4, **options):
    """Train while groups grow; returns the pruner, its masks, and the groups on the way."""
    net = seeded(lambda: GroupBlock(channels=1), seed)
    options = {"schedule": {"name": "cubic", "end": 3}, **options}
    evaluator = loop_evaluator(net, folder, epochs, resume=resume)
    config = [{"op_names": ["conv1", "conv3"], "num_groups": 4}]
    pruner = make(net, config, evaluator, **options)
    seen, after_step, generate = [], pruner.after_step, pruner.generate_masks

    def stopping():
        after_step()
        if pruner.clock.step == stop_at:
            raise Stop

    def watched():
        made = generate()
        seen.append({name: part.num_groups for name, part in pruner.partitions.items()})
        return made

    pruner.after_step, pruner.generate_masks = stopping, watched
    masks = pruner.compress(max_epochs=epochs)[1]
    return pruner, masks, [found["conv3"] for found in seen]


class TestSchedule:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ({"name": "cubic", "end": 3}, [1, 2, 2, 4]),
            ({"name": "linear", "end": 4, "every": 2}, [1, 1, 4]),
            ({"name": "linear", "end": 3, "initial": 0.7}, [2, 2, 2, 4]),
            ({"name": "iterative", "rounds": 2}, [1, 4]),
            ({"name": "constant", "every": 2}, [4, 4, 4]),
        ],
    )
    def test_groups_grow_to_the_goal(self, make, tmp_path, schedule, expected):
        pruner, masks, seen = ramp(make, tmp_path, schedule=schedule)
        assert seen == expected
        net = pruner.bound_model
        zeroed = schedule.get("end") != 4  # else no step follows the last masks
        small = assert_small_equals_masked(net, pruner, masks, DIGIT, zeroed=zeroed)
        assert groups_of(small).count(4) >= 2

    @pytest.mark.slow
    def test_what_is_masked_stays_zero(self, make, tmp_path):
        """Each split is one of the groups before it, since what those cost is gone."""
        masks = []

        def keeping(*args, **kwargs):
            pruner = make(*args, **kwargs)
            update = pruner.update_masks

            def remembered(made):
                masks.append({n: t["weight"].clone() for n, t in made.items()})
                update(made)

            pruner.update_masks = remembered
            return pruner

        pruner, _, _ = ramp(keeping, tmp_path)
        weight = pruner._target_spaces["conv3"]["weight"].target
        assert not weight[masks[-1]["conv3"] == 0].any()
        for before, after in pairwise(masks):
            assert all((after[name] <= before[name]).all() for name in after)
        assert len(masks) == 4

    @pytest.fixture(scope="class")
    def whole(self, make, tmp_path_factory):
        """A training that runs through."""
        return ramp(make, tmp_path_factory.mktemp("whole"))

    @pytest.mark.slow
    @pytest.mark.parametrize("stop_at", [7, 16])
    def test_killed_and_resumed_it_ends_the_same(self, make, whole, tmp_path, stop_at):
        whole, masks, _ = whole
        with pytest.raises(Stop):
            ramp(make, tmp_path / "cut", stop_at=stop_at)
        again, resumed, _ = ramp(make, tmp_path / "cut", resume=True, seed=5)
        assert all(torch.equal(masks[n]["weight"], resumed[n]["weight"]) for n in masks)
        for name in masks:
            mine, other = (p._target_spaces[name]["weight"].target for p in (whole, again))
            assert torch.equal(mine, other)

    @pytest.mark.slow
    def test_a_budget_is_met_at_its_end(self, make, tmp_path):
        net = seeded(lambda: GroupBlock(channels=1))
        dense = count(net, DIGIT).macs
        evaluator = loop_evaluator(net, tmp_path, 3)
        pruner = make(net, CONVS, evaluator, budget={"macs": 0.7}, schedule="linear")
        _, masks = pruner.compress(max_epochs=3)
        pruner.unwrap_model()
        assert count(ModelSpeedup(net, DIGIT, masks).speedup_model(), DIGIT).macs <= 0.7 * dense

    def test_mistakes(self, make, tmp_path):
        with pytest.raises(ConfigError, match="did you mean 'cubic'"):
            make(chain(), TWO, dummy_input=SMALL, schedule="cubik")
        with pytest.raises(ConfigError, match=r"schedule.end: 9 is too late"):
            ramp(make, tmp_path, schedule={"name": "linear", "end": 9})
        if make is not ShufflePruner:
            with pytest.raises(ConfigError, match="shaping and schedule exclude each other"):
                make(chain(), TWO, dummy_input=SMALL, schedule="cubic", shaping=1)

    @pytest.mark.slow
    def test_scores_of_taylor_are_those_since_the_last_masks(self, tmp_path):
        scores = []

        def watching(*args, **kwargs):
            pruner = GROUP_PRUNERS["gconv"](*args, criterion="taylor", **kwargs)
            split = pruner._split

            def seeing(restarts=None):
                scores.append({name: s.clone() for name, s in pruner._sums.items()})
                return split(restarts)

            pruner._split = seeing
            return pruner

        _, _, seen = ramp(watching, tmp_path)
        assert seen == [1, 2, 2, 4]
        assert [len(s) for s in scores] == [0, 2, 2, 2]
        last = scores[-1]["conv3"]
        assert int((last == 0).sum()) == last.numel() // 2  # of two groups


@pytest.mark.parametrize("schedule", [LinearPruner, AGPPruner])
def test_the_schedules_of_nni_drive_it_to_its_goal(make, tmp_path, schedule):
    net = seeded(lambda: GroupBlock(channels=1))
    dense = count(net, DIGIT).macs
    inner = make(net, CONVS, loop_evaluator(net, tmp_path), budget={"macs": 0.8})
    seen = []
    generate = inner.generate_masks

    def watched():
        made = generate()
        seen.append(sum(part.num_groups for part in inner.partitions.values()))
        return made

    inner.generate_masks = watched
    pruner = schedule(inner, interval_steps=1, total_times=4)
    _, masks = pruner.compress(max_steps=5, max_epochs=None)
    pruner.unwrap_model()
    small = ModelSpeedup(net, DIGIT, masks).speedup_model()
    assert count(small, DIGIT).macs <= 0.8 * dense
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


@pytest.mark.slow
def test_two_processes_make_the_masks_of_one(tmp_path):
    """With batch norm on running statistics, so that two halves of a batch are the batch."""
    found = {n: written_by_ranks("group_process.py", tmp_path / str(n), "masks", n) for n in (1, 2)}
    assert sorted(found[1][0]) == sorted(GROUP_PRUNERS)
    assert found[2][0] == found[2][1]
    assert found[2][0] == found[1][0]
