"""NNI's pruners train through our loop."""

from __future__ import annotations

import nni
import pytest
import torch
from mask_tools import Stop
from nni.compression import TorchEvaluator
from nni.compression.pruning import AGPPruner, L1NormPruner, SlimPruner, TaylorPruner
from training_nets import conv_net, plain_net, same_weights, synthetic

from nni_gconv.errors import CheckpointError
from nni_gconv.training.engine import CHECKPOINT_NAME
from nni_gconv.training.evaluator import make_evaluator, mask_sparsity
from nni_gconv.training.logs.metric_log import MetricLog
from nni_gconv.training.loop import fit
from nni_gconv.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=3, optimizer={"lr": 0.05}, no_decay_norm_bias=True)
CONV = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]


def evaluator_for(net, directory, settings=SETTINGS, **options):
    return make_evaluator(
        net, synthetic(), settings, directory=directory, device="cpu", seed=7, progress=False,
        **options,
    )  # fmt: skip


def bare(net, evaluator):
    """What NNI does before it trains, without a pruner."""
    evaluator._init_optimizer_helpers(net)
    evaluator.bind_model(net)
    return evaluator


def test_the_evaluator_trains_exactly_as_fit_does(tmp_path):
    net, other = conv_net(dropout=0.3), conv_net(dropout=0.3)
    evaluator = bare(net, evaluator_for(net, tmp_path / "nni"))
    assert isinstance(evaluator, TorchEvaluator)
    evaluator.train(max_epochs=3)
    last = SETTINGS.model_copy(update={"keep": "last"})
    result = fit(
        other, synthetic(), last, directory=tmp_path / "fit", device="cpu", seed=7, progress=False
    )
    assert same_weights(net.state_dict(), other.state_dict())
    assert evaluator.result.last_accuracy == result.last_accuracy
    assert evaluator.evaluate() == result.last_accuracy
    assert net(evaluator.get_dummy_input()).shape == (2, 4)


def test_slim_pruner(tmp_path):
    net = conv_net()
    config = [{"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}]
    evaluator = evaluator_for(net, tmp_path)
    pruner = SlimPruner(net, config, evaluator, training_steps=10, regular_scale=0.1)
    _, masks = pruner.compress()
    assert masks["1"]["weight"].sum() == 4
    factor = pruner.scaling_factors["1"]["weight"]
    assert (factor < 0.99).all()  # its own optimizer and its loss were both at work


def test_taylor_pruner_steps_and_loss_are_patched(tmp_path):
    net, seen = conv_net(), []
    evaluator = evaluator_for(net, tmp_path, after_step=lambda: seen.append(mask_sparsity(net)))
    before = {name: p.clone() for name, p in net.named_parameters()}
    _, masks = TaylorPruner(net, CONV, evaluator, training_steps=6).compress()
    assert len(seen) == 6  # a step and a half epochs, no more
    assert seen[:5] == [0.0] * 5
    assert seen[5] == 0.5
    assert masks["0"]["weight"].flatten(1).any(1).sum() == 4
    assert not torch.equal(before["8.weight"], net.get_parameter("8.weight"))
    assert not (tmp_path / CHECKPOINT_NAME).exists()


def test_agp_pruner_trains_for_epochs_and_logs_the_sparsity(tmp_path):
    net = conv_net()
    with MetricLog(tmp_path / "log", tensorboard=False) as log:
        evaluator = evaluator_for(net, tmp_path, log=log)
        pruner = AGPPruner(L1NormPruner(net, CONV, evaluator), interval_steps=4, total_times=3)
        _, masks = pruner.compress(max_steps=None, max_epochs=3)
        assert [r["stage"] for r in log.records()] == ["sparsify"] * 3
        sparsity = [r["sparsity"] for r in log.records()]
    assert sparsity == sorted(sparsity)
    assert 0 < sparsity[0] < sparsity[-1] == 0.5
    for name in ("0", "4"):
        kept = masks[name]["weight"].flatten(1).any(1)
        assert kept.sum() == 4
        weight = net.get_parameter(f"{name}._nni_wrapper.weight") * masks[name]["weight"]
        assert weight[~kept].count_nonzero() == 0
    pruner.unwrap_model()
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


class Counting(L1NormPruner):
    """Prunes anew every step, keeps count of them, and adds to the loss."""

    steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def compress(self, max_steps=None, max_epochs=None):
        self._fusion_compress(max_steps, max_epochs)
        return self.bound_model, self.get_masks()

    def _fuse_preprocess(self, evaluator):
        def step():
            self.steps += 1
            self.update_masks(self.generate_masks())

        def loss(value, _):
            space = self._target_spaces["0"]["weight"]
            return value + 0.01 * space.target.abs().sum()

        evaluator.patch_loss(loss)
        evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[step])

    def _fuse_postprocess(self, evaluator):
        pass


def prune(directory, seed=0, **options):
    net = conv_net(seed, dropout=0.3)
    evaluator = evaluator_for(net, directory, **options)
    pruner = Counting(net, CONV, evaluator)
    evaluator.track(pruner)
    masks = pruner.compress(max_epochs=3)[1]
    return net.state_dict(), masks, pruner.steps


def test_resume_brings_back_weights_masks_and_the_pruners_state(tmp_path):
    whole, masks, steps = prune(tmp_path / "whole")
    assert steps == 12
    left = [10]

    def stop():
        left[0] -= 1
        if not left[0]:
            raise Stop

    with pytest.raises(Stop):
        prune(tmp_path / "cut", after_step=stop)
    resumed, again, counted = prune(tmp_path / "cut", seed=4, resume=True)
    assert counted == 12
    trained = [name for name in whole if "_nni_wrapper" in name or not name.endswith("weight")]
    assert len(trained) > 8
    for name in trained:
        assert torch.equal(whole[name], resumed[name]), name
    for name, targets in masks.items():
        assert torch.equal(targets["weight"], again[name]["weight"])
    with pytest.raises(CheckpointError, match=r"settings\.epochs was 3, is 5"):
        prune(tmp_path / "cut", resume=True, settings=SETTINGS.model_copy(update={"epochs": 5}))


def test_a_mask_made_during_the_run_is_restored(tmp_path):
    net = plain_net()
    net.register_buffer("late_mask", None)

    def make_mask():
        net.late_mask = torch.tensor([0.0, 1.0])

    fit(net, synthetic(), SETTINGS, directory=tmp_path, device="cpu", progress=False,
        after_step=make_mask)  # fmt: skip
    other = plain_net()
    other.register_buffer("late_mask", None)
    fit(other, synthetic(), SETTINGS, directory=tmp_path, device="cpu", progress=False, resume=True)
    assert torch.equal(other.late_mask, net.late_mask)


def test_the_schedule_spans_what_nni_asks_for(tmp_path):
    net, rates = plain_net(), []
    evaluator = evaluator_for(net, tmp_path)
    bare(net, evaluator)
    evaluator.patch_optimizer_step([lambda: rates.append(optimizer.param_groups[0]["lr"])], [])
    optimizer = evaluator._optimizers[0]
    evaluator.train(max_steps=6)
    assert len(rates) == 6
    assert rates[0] == 0.05
    assert 0 < rates[-1] < 0.05 / 10
    evaluator.train(max_epochs=1)
    assert len(rates) == 10
    assert rates[6] == 0.05
    evaluator.train(max_steps=100, max_epochs=2)
    assert len(rates) == 18


def test_each_training_has_its_own_stage_and_checkpoint(tmp_path):
    net = plain_net()
    with MetricLog(tmp_path / "log", tensorboard=False) as log:
        evaluator = bare(net, evaluator_for(net, tmp_path, log=log))
        evaluator.train(max_epochs=1)
        evaluator.finetune()
        stages = [(r["stage"], r["epoch"]) for r in log.records()]
    assert stages == [("sparsify", 1), *(("sparsify-2", e) for e in (1, 2, 3))]
    assert (tmp_path / CHECKPOINT_NAME).exists()
    assert (tmp_path / "call-2" / CHECKPOINT_NAME).exists()


def test_an_optimizer_of_ones_own(tmp_path):
    net = conv_net()
    optimizer = nni.trace(torch.optim.RMSprop)(list(net.parameters()), lr=0.002)
    evaluator = bare(net, evaluator_for(net, tmp_path, optimizer=optimizer))
    evaluator.train(max_epochs=1)
    assert isinstance(evaluator._optimizers[0], torch.optim.RMSprop)
    assert evaluator.result.history[0]["lr"] < 0.002
