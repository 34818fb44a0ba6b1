"""What every pruner promises while an evaluator of NNI trains; new ones go to pruner_cases.py."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mask_tools import Stop, same_masks, seeded, widths
from nni.compression.pruning import AGPPruner, LinearPruner
from processes import written_by_ranks
from pruner_cases import PRUNERS
from pruning_nets import (
    GroupBlock,
    conv,
    loop_evaluator,
    made_small,
    plain_net,
    randomised,
)
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.graph import Masks
from nni_gconv.pruning.methods.nni import NNIMethodPruner
from nni_gconv.speedup import ModelSpeedup

HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
SMALL = torch.zeros(1, 3, 8, 8)
DIGIT = torch.zeros(1, 1, 8, 8)
RAMP = {"name": "cubic", "end": 3}
EPOCHS = 4
STEPS = 5  # of an epoch


@pytest.fixture(params=PRUNERS, scope="module")
def make(request):
    """The class of a pruner, or what makes one of it with its options."""
    return PRUNERS[request.param]


def digits_net():
    return GroupBlock(channels=1)


def sparsify(make, folder, *, stop_at=None, resume=False, seed=0):
    """Train while masks grow; returns the pruner, the masks and the weights behind them."""
    net = seeded(digits_net, seed)
    pruner = make(net, HALF, loop_evaluator(net, folder, EPOCHS, resume=resume), schedule=RAMP)
    after_step = pruner.after_step

    def stopping():
        after_step()
        if pruner.clock.step == stop_at:
            raise Stop

    pruner.after_step = stopping
    masks = pruner.compress(max_epochs=EPOCHS)[1]
    trained = {k: v.clone() for k, v in net.state_dict().items() if "_mask" not in k}
    return pruner, masks, trained


class Whole(NamedTuple):
    """A training that ran through: where it was kept, its masks and the weights behind them."""

    folder: Path
    masks: Masks
    trained: dict[str, torch.Tensor]
    small: nn.Module


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    pruner, masks, trained = sparsify(make, folder)
    return Whole(folder, masks, trained, made_small(pruner, masks))


class TestSparsify:
    def test_what_it_leaves_is_the_small_network(self, whole):
        assert widths(whole.masks, "stem", "conv1", "conv3") == [8, 12, 8]
        assert whole.small.conv1.out_channels == 12

    def test_the_same_seed_gives_the_same_bits(self, make, whole, tmp_path):
        _, again, retrained = sparsify(make, tmp_path)
        assert same_masks(whole.masks, again)
        assert all(torch.equal(w, retrained[name]) for name, w in whole.trained.items())

    @pytest.mark.parametrize(
        "stop_at", [STEPS + 2, pytest.param(3 * STEPS + 1, marks=pytest.mark.slow)]
    )
    def test_killed_and_resumed_it_ends_the_same(self, make, whole, tmp_path, stop_at):
        with pytest.raises(Stop):
            sparsify(make, tmp_path, stop_at=stop_at)
        _, again, retrained = sparsify(make, tmp_path, resume=True, seed=5)
        assert same_masks(whole.masks, again)
        # Before its wrapper a module holds a stand-in of each weight, made anew in each forward.
        mine = [name for name in whole.trained if "_nni_wrapper" in name or "running" in name]
        assert len(mine) > 10
        assert all(torch.equal(whole.trained[name], retrained[name]) for name in mine)

    def test_a_resume_after_the_end_gives_the_masks_again(self, make, whole, tmp_path):
        shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
        _, again, _ = sparsify(make, tmp_path, resume=True, seed=5)
        assert same_masks(whole.masks, again)


@pytest.mark.slow
def test_two_processes_make_the_masks_of_one(tmp_path):
    """With batch norm on running statistics, so that two halves of a batch are the batch."""
    found = {
        n: written_by_ranks("sparsify_process.py", tmp_path / str(n), "masks", n) for n in (1, 2)
    }
    assert sorted(found[1][0]) == sorted([*PRUNERS, "disagreeing"])
    assert found[2][0] == found[2][1]
    assert found[2][0] == found[1][0]


class TestTraining:
    def test_it_trains_with_an_evaluator_and_masks_afterwards(self, make, tmp_path):
        net = seeded(digits_net)
        before = copy.deepcopy(net.state_dict())
        evaluator = loop_evaluator(net, tmp_path)
        pruner = make(net, HALF, evaluator)
        _, masks = pruner.compress(max_epochs=1)
        pruner.unwrap_model()
        assert len(evaluator.result.history) == 1
        assert not torch.equal(before["conv3.weight"], net.state_dict()["conv3.weight"])
        expected = make(copy.deepcopy(net), HALF, dummy_input=torch.zeros(2, 1, 8, 8)).compress()[1]
        for module, targets in expected.items():
            assert all(
                torch.equal(m, masks[module][t]) for t, m in targets.items() if m is not None
            )
        ModelSpeedup(net, torch.zeros(1, 1, 8, 8), masks).speedup_model()

    @pytest.mark.parametrize("schedule", [LinearPruner, AGPPruner])
    def test_the_schedules_of_nni_drive_it_to_its_goal(self, make, tmp_path, schedule):
        net = seeded(digits_net)
        evaluator = loop_evaluator(net, tmp_path)
        inner = make(net, HALF, evaluator)
        seen = []
        generate = inner.generate_masks

        def watched():
            made = generate()
            seen.append(widths(made, "conv3")[0])
            return made

        inner.generate_masks = watched
        pruner = schedule(inner, interval_steps=1, total_times=4)
        _, masks = pruner.compress(max_steps=5, max_epochs=None)
        pruner.unwrap_model()
        assert seen == sorted(seen, reverse=True)
        assert len(seen) == 4
        assert len(set(seen)) > 2
        assert seen[-1] == 8
        speedup = ModelSpeedup(net, torch.zeros(1, 1, 8, 8), masks, verify=False)
        small = speedup.speedup_model()
        assert small.conv3.out_channels == 8
        assert speedup.report().notes == ()

    def test_masks_hold_while_it_trains(self, make):
        net = randomised(seeded(digits_net))
        pruner = make(net, HALF, dummy_input=torch.zeros(2, 1, 8, 8))
        _, masks = pruner.compress()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        generator = torch.Generator().manual_seed(0)
        net.train()
        for _ in range(3):
            optimizer.zero_grad()
            images = torch.randn(8, 1, 8, 8, generator=generator)
            net(images).square().mean().backward()
            optimizer.step()
        after = pruner.get_masks()
        for module, targets in masks.items():
            assert all(
                torch.equal(m, after[module][t]) for t, m in targets.items() if m is not None
            )
        net.double().eval()
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            masked = net(x)
        pruner.unwrap_model()
        small = ModelSpeedup(net, x, masks).speedup_model()
        with torch.no_grad():
            assert torch.allclose(small(x), masked, rtol=1e-9, atol=1e-11)


class TestPrunersOfNNIThatTrain:
    @pytest.mark.parametrize("method", ["TaylorPruner", "SlimPruner"])
    def test_they_score_what_they_train_and_the_weights_stay(self, tmp_path, method):
        net = seeded(digits_net)
        before = copy.deepcopy(net.state_dict())
        evaluator = loop_evaluator(net, tmp_path)
        pruner = NNIMethodPruner(net, HALF, evaluator, method=method)
        _, masks = pruner.compress(max_epochs=1)
        trained = copy.deepcopy(pruner.bound_model.stem._nni_wrapper.weight)
        pruner.unwrap_model()
        assert list(net.state_dict()) == list(before)
        assert torch.equal(net.stem.weight, trained)
        assert not torch.equal(net.stem.weight, before["stem.weight"])
        assert widths(masks, "stem", "conv1") == [8, 12]
        example = torch.zeros(1, 1, 8, 8)
        assert ModelSpeedup(net, example, masks).speedup_model().conv1.out_channels == 12

    def test_what_they_need_is_said(self, tmp_path):
        with pytest.raises(ConfigError, match="scores while training: give it a sparsify stage"):
            NNIMethodPruner(seeded(plain_net), HALF, method="TaylorPruner", dummy_input=SMALL)
        net = seeded(digits_net)
        evaluator = loop_evaluator(net, tmp_path)
        pruner = NNIMethodPruner(net, HALF, evaluator, method="TaylorPruner")
        with pytest.raises(ConfigError, match=r"options\.training_steps: how long"):
            pruner.compress()
        net = seeded(digits_net)
        evaluator = loop_evaluator(net, tmp_path)
        pruner = NNIMethodPruner(net, HALF, evaluator, method="TaylorPruner")
        with pytest.raises(ConfigError, match="needs at least one step of training"):
            pruner.compress(max_epochs=0)
        with pytest.raises(ConfigError, match="unknown NNI pruner 'L1Prune'; did you mean"):
            NNIMethodPruner(seeded(plain_net), HALF, method="L1Prune")
        with pytest.raises(ConfigError, match="unknown option 'p'"):
            NNIMethodPruner(seeded(plain_net), HALF, method="L1NormPruner", options={"p": 3})

    def test_no_other_pruner_can_drive_them(self, tmp_path):
        net = seeded(digits_net)
        evaluator = loop_evaluator(net, tmp_path)
        inner = NNIMethodPruner(net, HALF, evaluator, method="TaylorPruner")
        pruner = LinearPruner(inner, interval_steps=1, total_times=2, evaluator=evaluator)
        with pytest.raises(ConfigError, match="TaylorPruner scores while it trains itself"):
            pruner.compress(max_steps=2, max_epochs=None)

    def test_a_transposed_convolution_is_refused_and_left_unwrapped(self):
        net = seeded(
            lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 8, 3), nn.ReLU(), conv(8, 4))
        )
        config = [{"op_names": ["1"], "sparse_ratio": 0.5}]
        with pytest.raises(ConfigError, match="1 is transposed"):
            NNIMethodPruner(net, config, method="L1NormPruner", dummy_input=SMALL)
        assert not any("_nni" in name for name in net.state_dict())
