"""The training loop: learns, repeats itself, survives being killed, and says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from mask_tools import Stop
from processes import run
from pydantic import ValidationError
from torch import nn
from training_nets import conv_net, plain_net, same_weights, synthetic

from nni_gconv.errors import CheckpointError, ConfigError, NniGconvError
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.engine import CHECKPOINT_NAME
from nni_gconv.training.logs.metric_log import MetricLog
from nni_gconv.training.loop import fit
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.optim import Schedule, ScheduleLR, make_optimizer
from nni_gconv.training.seeding import derive_seed
from nni_gconv.training.settings import FinetuneSettings, TrainSettings

HERE = Path(__file__).parents[1] / "helpers"


def train(directory, net=None, *, loaders=None, resume=False, **options):
    """Train a small network; return it with its result."""
    fit_options = {
        name: options.pop(name)
        for name in ("seed", "log", "after_step", "extra_metrics", "stage", "progress")
        if name in options
    }
    net = net if net is not None else conv_net(dropout=0.3)
    settings = TrainSettings(**{"epochs": 3, "optimizer": {"lr": 0.05}, **options})
    result = fit(
        net,
        loaders or synthetic(),
        settings,
        directory=directory,
        device="cpu",
        resume=resume,
        **{"seed": 7, "progress": False, **fit_options},
    )
    return net, result


def stop_after(steps):
    left = [steps]

    def after_step():
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    return after_step


# --- learning and repeating ----------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_digits(tmp_path):
    data = DataSettings(name="digits", batch_size=32)
    loaders = make_loaders(load_data(data), data, seed=0, device="cpu")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    _, result = train(tmp_path, net, loaders=loaders, epochs=4, schedule={"warmup": 0.5})
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 3
    assert result.best_accuracy > 0.9
    test = evaluate(net, loaders.test, device="cpu")
    assert test.accuracy > 0.9
    assert test.count == 360


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": {"name": "AdamW", "lr": 0.01}},
        {"amp": "bf16", "channels_last": True, "grad_clip": 0.5, "label_smoothing": 0.1},
    ],
)
def test_same_seed_same_weights_other_seed_other_weights(tmp_path, options):
    a, ra = train(tmp_path / "a", **options)
    torch.rand(5)
    b, rb = train(tmp_path / "b", **options)
    assert same_weights(a.state_dict(), b.state_dict())
    assert without_time(ra.history) == without_time(rb.history)
    c, _ = train(tmp_path / "c", seed=8, **options)
    assert not same_weights(a.state_dict(), c.state_dict())


def without_time(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_resume_in_the_middle_of_an_epoch_changes_nothing(tmp_path, optimizer, keep):
    options = {"optimizer": {"name": optimizer, "lr": 0.02}, "keep": keep, "epochs": 3}
    whole, expected = train(tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train(tmp_path / "cut", after_step=stop_after(6), **options)  # 4 steps an epoch
    resumed, result = train(tmp_path / "cut", conv_net(seed=5, dropout=0.3), resume=True, **options)
    assert same_weights(whole.state_dict(), resumed.state_dict())
    assert without_time(result.history) == without_time(expected.history)
    assert result.best_epoch == expected.best_epoch
    # A run that had ended is not run again.
    after = []
    again, _ = train(
        tmp_path / "cut", conv_net(1, 0.3), resume=True, after_step=lambda: after.append(1),
        **options,
    )  # fmt: skip
    assert not after
    assert same_weights(whole.state_dict(), again.state_dict())


def run_process(directory, *options):
    directory.mkdir(exist_ok=True)
    return run("fit_process.py", directory, *options)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    whole = run_process(tmp_path / "whole")
    assert whole.code == 0, whole.said
    killed = run_process(tmp_path / "killed", "kill_at=10")  # epoch 3, after 2 of 4 steps
    assert killed.code == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final-0.pt").exists()
    # Even in the middle of writing: what is left of a temporary file is in nobody's way.
    (tmp_path / "killed" / f".{CHECKPOINT_NAME}.12345").write_bytes(b"half a checkpoint")
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text()
    assert lines.count("\n") == 2
    (tmp_path / "killed" / "metrics.jsonl").write_text(lines + '{"stage": "tra')  # torn line
    resumed = run_process(tmp_path / "killed", "resume=yes")
    assert resumed.code == 0, resumed.said
    a, b = (torch.load(tmp_path / d / "final-0.pt") for d in ("whole", "killed"))
    assert same_weights(a["weights"], b["weights"])
    assert without_time(a["history"]) == without_time(b["history"])
    logged = [json.loads(s) for s in (tmp_path / "killed" / "metrics.jsonl").open()]
    assert [(r["stage"], r["epoch"]) for r in logged] == [("train", e) for e in (1, 2, 3, 4)]


# --- what is kept --------------------------------------------------------------------------------


def test_best_is_handed_on_and_ties_go_to_the_later(tmp_path, monkeypatch):
    snapshots = []
    scripted = iter([0.5, 0.75, 0.25, 0.75, 0.5])

    net, loaders = plain_net(), synthetic()

    def note(model):
        snapshots.append({k: v.clone() for k, v in model.state_dict().items()})
        return {}

    def faked(*args, **kwargs):
        return dataclasses.replace(evaluate(*args, **kwargs), accuracy=next(scripted))

    monkeypatch.setattr("nni_gconv.training.engine.evaluate", faked)
    _, result = train(tmp_path, net, loaders=loaders, epochs=5, extra_metrics=note)
    assert (result.best_epoch, result.best_accuracy, result.last_accuracy) == (4, 0.75, 0.5)
    assert same_weights(net.state_dict(), snapshots[3])
    assert not same_weights(net.state_dict(), snapshots[4])


def test_a_best_from_before_the_cut_is_still_handed_on(tmp_path, monkeypatch):
    def faked(model, *args, **kwargs):
        found = evaluate(model, *args, **kwargs)
        return dataclasses.replace(found, accuracy=0.9 if len(calls) <= 4 else 0.1)

    monkeypatch.setattr("nni_gconv.training.engine.evaluate", faked)
    calls: list[int] = []
    whole, expected = train(tmp_path / "whole", after_step=lambda: calls.append(1))
    assert expected.best_epoch == 1
    calls.clear()

    def stop():
        calls.append(1)
        if len(calls) == 10:
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "cut", after_step=stop)
    resumed, result = train(tmp_path / "cut", resume=True)
    assert result.best_epoch == 1
    assert same_weights(whole.state_dict(), resumed.state_dict())


def test_keep_last_hands_on_the_last(tmp_path):
    snapshots = []

    def note(model):
        snapshots.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"sparsity": 0.25}

    net, result = train(tmp_path, keep="last", extra_metrics=note)
    assert same_weights(net.state_dict(), snapshots[-1])
    assert result.history[0]["sparsity"] == 0.25
    assert torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)["best_state"] is None


def test_no_epochs_is_no_training(tmp_path):
    net, result = train(tmp_path, conv_net(), epochs=0)
    assert same_weights(net.state_dict(), conv_net().state_dict())
    assert (result.history, result.best_epoch) == ([], None)
    expected = evaluate(conv_net(), synthetic().val, device="cpu").accuracy
    assert result.best_accuracy == result.last_accuracy == expected


# --- what is refused -----------------------------------------------------------------------------


def test_a_checkpoint_of_other_settings_says_what_differs(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"settings\.optimizer\.lr was 0\.05, is 0\.01"):
        train(tmp_path, resume=True, optimizer={"lr": 0.01})
    with pytest.raises(CheckpointError, match=r"seed was 7, is 8"):
        train(tmp_path, resume=True, seed=8)
    with pytest.raises(CheckpointError, match=r"steps_per_epoch was 4, is 9"):
        train(tmp_path, resume=True, loaders=synthetic(batch_size=8))
    train(tmp_path, optimizer={"lr": 0.01})  # without resume the old one is forgotten


def test_a_checkpoint_of_another_network_says_so(tmp_path):
    train(tmp_path)
    other = conv_net()
    other[0] = nn.Conv2d(3, 8, 5, padding=2, bias=False)
    with pytest.raises(CheckpointError, match=r"0\.weight was \(8, 3, 3, 3\), is \(8, 3, 5, 5\)"):
        train(tmp_path, other, resume=True)
    with pytest.raises(CheckpointError, match="another network"):
        train(tmp_path, plain_net(), resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(tmp_path, epochs=1)
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a readable checkpoint"):
        train(tmp_path, epochs=1, resume=True)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        train(tmp_path, epochs=1, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(NniGconvError) as error:
        train(tmp_path, optimizer={"lr": 1e30}, schedule={"name": "constant"})
    text = str(error.value)
    assert "epoch 1, step " in text
    assert "lr 1e+30" in text
    assert "\n" not in text
    assert not (tmp_path / CHECKPOINT_NAME).exists()


def test_the_step_that_went_wrong_is_the_first(tmp_path):
    net, done = plain_net(), []

    def poison():
        done.append(1)
        if len(done) == 6:
            with torch.no_grad():
                net[0].weight.fill_(math.nan)

    with pytest.raises(NniGconvError, match=r"epoch 2, step 3,"):
        train(tmp_path, net, after_step=poison)


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(tmp_path, amp="fp16")


def test_extra_metrics_must_be_finite_numbers(tmp_path):
    with pytest.raises(ConfigError, match="metric 'sparsity' is nan"):
        train(tmp_path, extra_metrics=lambda _: {"sparsity": math.nan})
    with pytest.raises(ConfigError, match="metric 'mask' is a Tensor"):
        train(tmp_path, extra_metrics=lambda _: {"mask": torch.ones(2)})


def test_a_frozen_network_cannot_be_trained(tmp_path):
    net = conv_net()
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        train(tmp_path, net)


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="ascending"):
        TrainSettings(schedule={"milestones": [20, 10]})
    with pytest.raises(ValidationError, match="epochs"):
        TrainSettings(epochs=-1)
    with pytest.raises(ValidationError, match="speed"):
        TrainSettings(speed=3)
    with pytest.raises(ConfigError, match="nesterov"):
        settings = TrainSettings(optimizer={"momentum": 0, "nesterov": True})
        make_optimizer(plain_net(), settings)
    assert FinetuneSettings().optimizer.lr == 0.01


# --- optimizers and schedules --------------------------------------------------------------------


def test_a_step_is_torchs_step(tmp_path):
    """Two epochs of the loop against the textbook loop written out."""
    loaders = synthetic()
    settings = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
    net, _ = train(
        tmp_path, plain_net(), loaders=loaders, epochs=2, optimizer=settings, keep="last",
        label_smoothing=0.1, grad_clip=0.3, schedule={"name": "multistep", "milestones": [1]},
    )  # fmt: skip
    expected = plain_net()
    optimizer = torch.optim.SGD(expected.parameters(), **settings)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(2):
        loaders.train.set_epoch(epoch)
        for images, labels in loaders.train:
            optimizer.zero_grad()
            loss_of(expected(images), labels).backward()
            nn.utils.clip_grad_norm_(expected.parameters(), 0.3)
            optimizer.step()
        scheduler.step()
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def rates(settings, steps_per_epoch=10):
    schedule = Schedule.from_settings(settings, steps_per_epoch, settings.epochs * steps_per_epoch)
    return [schedule(step) for step in range(settings.epochs * steps_per_epoch)]


def test_cosine_with_warmup():
    factors = rates(TrainSettings(epochs=4, schedule={"warmup": 0.5}))
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1
    assert factors[5:] == sorted(factors[5:], reverse=True)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=35)
    expected = []
    for _ in range(35):
        expected.append(torch_cosine.get_last_lr()[0])
        optimizer.step()
        torch_cosine.step()
    assert factors[5:] == pytest.approx(expected)


def test_floor_multistep_and_constant():
    low = rates(TrainSettings(epochs=4, optimizer={"lr": 0.1}, schedule={"min_lr": 0.02}))
    assert low[0] == 1
    assert min(low) == low[-1] > 0.2
    steps = rates(
        TrainSettings(epochs=4, schedule={"name": "multistep", "milestones": [1, 3], "gamma": 0.5})
    )
    assert steps == [1.0] * 10 + [0.5] * 20 + [0.25] * 10
    constant = rates(TrainSettings(epochs=2, schedule={"name": "constant", "warmup": 1}))
    assert constant == pytest.approx([0.1 * k for k in range(1, 11)] + [1.0] * 10)
    assert Schedule("cosine", total_steps=5)(9) == 0  # beyond the end


def test_seek_sets_each_group_from_its_own_rate():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    scheduler = ScheduleLR(optimizer, Schedule("cosine", total_steps=4))
    for step in (3, 1, 2):
        scheduler.seek(step)
        factor = (1 + math.cos(math.pi * step / 4)) / 2
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])
        assert scheduler.get_last_lr() == [g["lr"] for g in optimizer.param_groups]


def test_no_decay_on_norm_and_bias():
    settings = TrainSettings(no_decay_norm_bias=True, optimizer={"weight_decay": 0.1})
    decay, plain = make_optimizer(conv_net(), settings).param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decay["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(decay["params"]) + len(plain["params"]) == len(list(conv_net().parameters()))


# --- evaluation ----------------------------------------------------------------------------------


def test_evaluate_equals_the_definition():
    net, loaders = conv_net(dropout=0.5), synthetic(eval_batch_size=5)
    net.train()
    net[1].eval()  # someone froze the batch norm
    metrics = evaluate(net, loaders.test, device="cpu")
    assert net.training
    assert not net[1].training
    assert net[3].training
    net.eval()
    images, labels = (torch.cat(parts) for parts in zip(*loaders.test, strict=True))
    with torch.no_grad():
        logits = net(images)
    assert metrics.count == 24
    assert metrics.accuracy == (logits.argmax(1) == labels).double().mean()
    assert metrics.top5 == 1  # of four classes
    assert metrics.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_seeds_do_not_collide():
    seeds = {derive_seed(word, a, b) for word in ("x", "y") for a in range(30) for b in range(30)}
    assert len(seeds) == 1800
    assert derive_seed("epoch", 3, 4) == derive_seed("epoch", 3, 4)


# --- what a person sees --------------------------------------------------------------------------


def test_a_line_an_epoch_where_there_is_no_terminal(tmp_path, capsys):
    train(tmp_path, progress=True, epochs=2, stage="finetune")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["finetune 1/2", "finetune 2/2"]
    assert "val accuracy" in lines[0]
    assert max(map(len, lines)) <= 80 - len("10/100") + len("1/2")
    train(tmp_path, progress=False, epochs=2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(tmp_path, progress=True, epochs=1)
    assert "train 1/1" in capsys.readouterr().err


def test_the_log_gets_every_epoch_once(tmp_path):
    with MetricLog(tmp_path / "log", tensorboard=False) as log:
        with pytest.raises(Stop):
            train(tmp_path, log=log, after_step=stop_after(10))
        assert [r["epoch"] for r in log.records()] == [1, 2]
    with MetricLog(tmp_path / "log", tensorboard=False) as log:
        train(tmp_path, log=log, resume=True)
        train(tmp_path, log=log, resume=True)
        assert [r["epoch"] for r in log.records("train")] == [1, 2, 3]
        train(tmp_path, log=log, epochs=1)  # begins anew
        assert [r["epoch"] for r in log.records("train")] == [1]
