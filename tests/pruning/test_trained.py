"""Hooks of a pruner around the steps and epochs of NNI's evaluators."""

from __future__ import annotations

from pathlib import Path

import nni
import pytest
import torch
from nni.compression import TorchEvaluator
from nni.compression.pruning import LinearPruner
from pruning_nets import conv, loop_evaluator
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from nni_gconv.errors import ConfigError
from nni_gconv.pruning.channel_pruner import ChannelPruner
from nni_gconv.training.distributed import from_main_process

HALF = [{"op_names": ["0"], "sparse_ratio": 0.5}]
STEPS = 5  # of an epoch of the loaders below


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        conv(1, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip


class Watched(ChannelPruner):
    """Writes down which hook ran, and adds a gradient and a shift that can be checked."""

    def __init__(self, *args, epochs_needed=False, **options):
        self.calls, self.epochs_needed = [], epochs_needed
        super().__init__(*args, **options)

    @property
    def needs_epochs(self):
        return self.epochs_needed

    def rank(self, filters):
        return filters[0].norm(dim=1)

    def note(self, name, *numbers):
        self.calls.append((name, *numbers))

    def prepare_training(self):
        self.note("prepare", type(self.optimizer).__name__)

    def begin_training(self):
        self.note("begin")

    def before_epoch(self, epoch):
        self.note("epoch", epoch, self.clock.step)

    def before_step(self):
        assert self._target_spaces["0"]["weight"].target.grad is not None
        self.note("before")

    def after_step(self):
        super().after_step()
        self.note("after", self.clock.step)

    def after_epoch(self, epoch):
        self.note("end", epoch, self.clock.epoch)

    def finish_training(self):
        super().finish_training()
        self.note("finish")

    def state_dict(self):
        return {**super().state_dict(), "calls": len(self.calls)}


def steps(first, count=STEPS):
    return [c for k in range(first, first + count) for c in (("before",), ("after", k + 1))]


EXPECTED = [
    ("prepare", "SGD"), ("begin",),
    ("epoch", 0, 0), *steps(0), ("end", 0, 1),
    ("epoch", 1, STEPS), *steps(STEPS), ("end", 1, 2),
    ("finish",),
]  # fmt: skip


def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(STEPS)]


def train(model, optimizer, training_step, scheduler, max_steps=None, max_epochs=None):
    """A training function as NNI's documentation shows it."""
    for step in range(max_steps or max_epochs * STEPS):
        optimizer.zero_grad()
        training_step(batches()[step % STEPS], model).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def torch_evaluator(model, schedulers=None, **options):
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.1, weight_decay=0.01, **options)
    made = schedulers(optimizer) if schedulers else None

    def training_step(batch, model):
        return F.cross_entropy(model(batch[0]), batch[1])

    return TorchEvaluator(
        train, optimizer, training_step, lr_schedulers=made, dummy_input=torch.zeros(1, 1, 8, 8)
    )


def test_hooks_run_in_our_loop(tmp_path):
    model = net()
    pruner = Watched(model, HALF, loop_evaluator(model, tmp_path, epochs=2))
    pruner.compress(max_epochs=2)
    assert pruner.calls == EXPECTED
    assert pruner.clock.steps == 2 * STEPS
    assert not pruner.in_training


def test_hooks_run_in_anyones_loop_that_says_how_long_an_epoch_is():
    model = net()
    evaluator = torch_evaluator(model)
    evaluator.steps_per_epoch = STEPS
    pruner = Watched(model, HALF, evaluator, epochs_needed=True)
    pruner.compress(max_epochs=2)
    assert pruner.calls == EXPECTED


def test_without_epochs_steps_remain():
    model = net()
    pruner = Watched(model, HALF, torch_evaluator(model))
    pruner.compress(max_epochs=1)
    assert pruner.calls == [("prepare", "SGD"), ("begin",), *steps(0), ("finish",)]
    assert pruner.clock.steps is None


def test_a_method_that_lives_by_epochs_says_what_is_missing():
    model = net()
    pruner = Watched(model, HALF, torch_evaluator(model), epochs_needed=True)
    with pytest.raises(ConfigError, match=r"Watched: .* set evaluator.steps_per_epoch = len"):
        pruner.compress(max_epochs=1)


def test_an_epoch_that_is_cut_short_has_no_end(tmp_path):
    model = net()
    pruner = Watched(model, HALF, loop_evaluator(model, tmp_path, epochs=3))
    pruner.compress(max_steps=STEPS + 2)
    assert pruner.calls == [*EXPECTED[: 4 + 2 * STEPS], ("epoch", 1, STEPS), *steps(STEPS, 2),
                            ("finish",)]  # fmt: skip


def test_a_second_training_begins_anew(tmp_path):
    model = net()
    pruner = Watched(model, HALF, loop_evaluator(model, tmp_path, epochs=2))
    pruner.compress(max_epochs=2)
    pruner.calls.clear()
    pruner.compress(max_epochs=2)
    assert pruner.calls == EXPECTED


def test_a_resume_goes_on_where_it_stopped(tmp_path):
    class Stop(Exception):
        pass

    class Killed(Watched):
        def after_step(self):
            super().after_step()
            if self.clock.step == STEPS + 2:
                raise Stop

    model = net()
    with pytest.raises(Stop):
        Killed(model, HALF, loop_evaluator(model, tmp_path, epochs=2)).compress(max_epochs=2)
    model = net(seed=1)
    pruner = Watched(model, HALF, loop_evaluator(model, tmp_path, epochs=2, resume=True))
    pruner.compress(max_epochs=2)
    assert pruner.calls == [EXPECTED[0], *EXPECTED[4 + 2 * STEPS :]]
    model = net(seed=2)
    again = Watched(model, HALF, loop_evaluator(model, tmp_path, epochs=2, resume=True))
    again.compress(max_epochs=2)
    assert again.calls == [EXPECTED[0], EXPECTED[-1]]
    assert again.clock == pruner.clock


class Adding(ChannelPruner):
    """Adds a gradient before the step, and a shift after it."""

    def rank(self, filters):
        return filters[0].norm(dim=1)

    def before_step(self):
        self._target_spaces["0"]["weight"].target.grad.add_(1.0)

    def after_step(self):
        super().after_step()
        self._target_spaces["0"]["weight"].target.add_(1.0)


def train_by_closure(model, optimizer, training_step, scheduler, max_steps, max_epochs):
    """As Lightning does: the step of the optimizer computes the gradients."""

    def closure():
        optimizer.zero_grad()
        loss = training_step(batches()[0], model)
        loss.backward()
        return loss

    for _ in range(max_steps):
        assert optimizer.step(closure=closure) > 0


@pytest.mark.parametrize("trained_by", ["our loop", "a function", "a closure"])
def test_what_hooks_do_to_gradients_and_weights_counts(tmp_path, trained_by):
    found = []
    for kind in (Watched, Adding):
        model = net()
        evaluator = torch_evaluator(model)
        if trained_by == "our loop":
            evaluator = loop_evaluator(model, tmp_path / kind.__name__, epochs=1, momentum=0.0)
        if trained_by == "a closure":
            evaluator.training_func = train_by_closure
        pruner = kind(model, HALF, evaluator)
        pruner.compress(max_steps=1)
        found.append(pruner._target_spaces["0"]["weight"].target.detach())
    # lr 0.1 * gradient 1 down, 1 up.
    assert torch.allclose(found[1], found[0] + 0.9, atol=1e-6)


class TestParameterGroups:
    class Splitting(ChannelPruner):
        def rank(self, filters):
            return filters[0].norm(dim=1)

        def prepare_training(self):
            self.split_groups([self._target_spaces["1"]["weight"].target], weight_decay=0.0)

    @pytest.mark.parametrize(
        "schedulers",
        [
            lambda o: nni.trace(LambdaLR)(o, lambda step: 0.5**step),
            lambda o: nni.trace(CosineAnnealingLR)(o, T_max=10),
        ],
    )
    def test_a_group_of_ones_own_follows_the_same_schedule(self, schedulers):
        model, rates = net(), []

        class Splitting(self.Splitting):
            def before_step(self):
                rates.append([group["lr"] for group in self.optimizer.param_groups])
                decays = [group["weight_decay"] for group in self.optimizer.param_groups]
                assert decays == [0.01, 0.0]

        pruner = Splitting(model, HALF, torch_evaluator(model, schedulers))
        pruner.compress(max_steps=4)
        assert len(rates) == 4
        assert all(a == b for a, b in rates)
        assert len({a for a, _ in rates}) == 4

    def test_in_our_loop_too_and_after_a_resume(self, tmp_path):
        seen = []

        class Splitting(self.Splitting):
            def before_step(self):
                groups = self.optimizer.param_groups
                seen.append([(g["weight_decay"], g["lr"]) for g in groups])
                if len(seen) == STEPS + 1 and stops:
                    raise KeyboardInterrupt

        stops = True
        model = net()
        with pytest.raises(KeyboardInterrupt):
            Splitting(model, HALF, loop_evaluator(model, tmp_path, 2)).compress(max_epochs=2)
        stops, model = False, net()
        Splitting(model, HALF, loop_evaluator(model, tmp_path, 2, resume=True)).compress(
            max_epochs=2
        )
        assert len(seen) == 2 * STEPS + 1
        assert all([decay for decay, _ in groups] == [5e-4, 0.0] for groups in seen)
        assert all(groups[0][1] == groups[1][1] for groups in seen)
        assert seen[STEPS] == seen[STEPS + 1]
        assert len({groups[0][1] for groups in seen}) == 2 * STEPS

    def test_a_group_that_is_wholly_meant_is_not_split(self):
        model = net()

        class Everything(self.Splitting):
            def prepare_training(self):
                self.split_groups(self.optimizer.param_groups[0]["params"], weight_decay=0.0)
                assert [g["weight_decay"] for g in self.optimizer.param_groups] == [0.0]

        Everything(model, HALF, torch_evaluator(model)).compress(max_steps=1)


def test_masked_weights_and_their_momentum_are_cleared():
    model = net()

    class Clearing(ChannelPruner):
        def rank(self, filters):
            return filters[0].norm(dim=1)

        def after_step(self):
            super().after_step()
            if self.clock.step == 2:
                self.renew_masks()
                self.clear_masked()

    pruner = Clearing(model, HALF, torch_evaluator(model, momentum=0.9))
    seen = {}
    finish = pruner.finish_training

    def look():
        weight = pruner._target_spaces["0"]["weight"]
        gathered = pruner.optimizer.state[weight.target]["momentum_buffer"]
        seen.update(weight=weight.target.clone(), momentum=gathered.clone(), mask=weight.mask)
        finish()

    pruner.finish_training = look
    pruner.compress(max_steps=5)
    gone = seen["mask"] == 0
    assert int(gone.sum()) == 4 * 9
    for name in ("weight", "momentum"):
        assert not seen[name][gone].any()
        assert seen[name][~gone].any()


def test_an_evaluator_of_another_model_is_refused():
    """It would train the other one, and prune this one as it was."""
    pruner = Watched(net(), HALF, torch_evaluator(net()))
    with pytest.raises(ConfigError, match="its optimizer has none of this model's parameters"):
        pruner.compress(max_steps=1)


@pytest.mark.parametrize("duration", [{"max_epochs": "a"}, {"max_steps": 1.5}, {"max_epochs": -1}])
def test_a_duration_is_a_whole_number(duration):
    model = net()
    pruner = Watched(model, HALF, torch_evaluator(model))
    with pytest.raises(ConfigError, match=r"compress: max_.*: .* is not a whole number from 0"):
        pruner.compress(**duration)


def test_without_a_training_there_is_no_optimizer():
    pruner = Watched(net(), HALF, dummy_input=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ConfigError, match="no optimizer before the training begins"):
        pruner.optimizer  # noqa: B018
    with pytest.raises(ConfigError, match="need an evaluator="):
        pruner.compress(max_steps=1)


def test_alone_the_main_process_is_this_one():
    value = {"a": torch.ones(2)}
    assert from_main_process(value) is value


class TestSchedules:
    def widths_seen(self, folder, schedule, epochs=4, driven=False, **options):
        model, seen = net(), []

        class Seeing(Watched):
            def begin_training(self):
                ChannelPruner.begin_training(self)

            def before_epoch(self, epoch):
                weight = self._target_spaces["0"]["weight"]
                seen.append(int(weight.mask.flatten(1).any(1).sum()))

            def after_epoch(self, epoch):
                ChannelPruner.after_epoch(self, epoch)

            def finish_training(self):
                ChannelPruner.finish_training(self)

            needs_epochs = ChannelPruner.needs_epochs

        config = options.pop("config_list", [{"op_names": ["0"], "sparse_ratio": 0.75}])
        evaluator = loop_evaluator(model, Path(folder), epochs=epochs)
        pruner = Seeing(model, config, evaluator, schedule=schedule, **options)
        if driven:
            outer = LinearPruner(pruner, interval_steps=2, total_times=3)
            masks = outer.compress(max_steps=None, max_epochs=epochs)[1]
        else:
            masks = pruner.compress(max_epochs=epochs)[1]
        return [*seen, int(masks["0"]["weight"].flatten(1).any(1).sum())]

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("one-shot", [8, 8, 8, 8, 2]),
            ("constant", [2, 2, 2, 2, 2]),
            ({"name": "iterative", "rounds": 2}, [5, 5, 2, 2, 2]),
            ({"name": "linear", "end": 3}, [8, 6, 4, 2, 2]),
            ({"name": "cubic", "end": 2}, [8, 3, 2, 2, 2]),
        ],
    )
    def test_ratios_follow_the_schedule(self, tmp_path, schedule, expected):
        assert self.widths_seen(tmp_path, schedule) == expected

    def test_a_threshold_and_a_budget_follow_it_too(self, tmp_path):
        ramp = {"name": "linear", "end": 4}
        config = [{"op_names": ["0"], "sparse_threshold": 1e9}]
        seen = self.widths_seen(tmp_path / "threshold", ramp, config_list=config)
        assert seen == [8, 1, 1, 1, 1]
        seen = self.widths_seen(
            tmp_path / "budget", ramp, config_list=[{"op_names": ["0"]}],
            budget={"macs": 0.3}, dummy_input=torch.zeros(1, 1, 8, 8),
        )  # fmt: skip
        assert seen == [8, 6, 5, 3, 2]
        seen = self.widths_seen(
            tmp_path / "count", ramp, config_list=[{"op_names": ["0"]}],
            budget={"params": 220}, dummy_input=torch.zeros(1, 1, 8, 8),
        )  # fmt: skip
        assert seen == [8, 6, 5, 4, 3]

    def test_the_schedule_of_nni_goes_before_ours(self, tmp_path):
        seen = self.widths_seen(tmp_path, "constant", epochs=2, driven=True)
        assert seen == [8, 4, 2]

    def test_a_goal_out_of_reach_is_said(self, tmp_path):
        with pytest.raises(ConfigError, match=r"schedule.end: 9 is too late for a training of 4"):
            self.widths_seen(tmp_path, {"name": "linear", "end": 9})

    def test_a_schedule_in_epochs_needs_their_number(self):
        model = net()
        evaluator = torch_evaluator(model)
        evaluator.steps_per_epoch = STEPS
        options = {"schedule": "constant"}
        plain = type("Plain", (ChannelPruner,), {"rank": Watched.rank})
        with pytest.raises(ConfigError, match=r"schedule constant: give compress\(\) max_epochs"):
            plain(model, HALF, evaluator, **options).compress(max_steps=5)

    def test_no_epochs_at_all_prune_at_once(self, tmp_path):
        assert self.widths_seen(tmp_path, "constant", epochs=0) == [2]

    def test_a_schedule_cut_short_ends_with_the_goal(self, tmp_path):
        model = net()
        plain = type("Plain", (ChannelPruner,), {"rank": Watched.rank})
        evaluator = loop_evaluator(model, tmp_path, epochs=4)
        pruner = plain(model, HALF, evaluator, schedule={"name": "linear", "end": 2})
        masks = pruner.compress(max_steps=STEPS + 1)[1]
        assert int(masks["0"]["weight"].flatten(1).any(1).sum()) == 4
