"""Learning from a teacher: the loss, what stays as it was, resuming, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from mask_tools import Stop
from pydantic import ValidationError
from torch import nn
from training_nets import conv_net, same_weights, synthetic

from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.pruning.methods.slimming import SlimmingPruner
from nni_gconv.recipe.schema import Recipe
from nni_gconv.training.checkpoint import load_checkpoint
from nni_gconv.training.distill import distillation_loss
from nni_gconv.training.engine import default_training_step
from nni_gconv.training.evaluator import make_evaluator
from nni_gconv.training.loop import fit
from nni_gconv.training.settings import DistillSettings, FinetuneSettings, TrainSettings

DISTILL = {"temperature": 3.0, "weight": 0.6}


def train(directory, net=None, *, teacher=None, resume=False, after_step=None, **settings):
    net = net or conv_net(dropout=0.3)
    given = {"epochs": 3, "optimizer": {"lr": 0.05}, "distill": DISTILL, **settings}
    result = fit(
        net, synthetic(), TrainSettings(**given), directory=directory, device="cpu", seed=7,
        progress=False, resume=resume, teacher=teacher, after_step=after_step,
    )  # fmt: skip
    return net, [{k: v for k, v in r.items() if k != "seconds"} for r in result.history]


def taught(seed=9):
    return conv_net(seed=seed, dropout=0.3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.7), (1.0, 1.0), (2.5, 0.0)])
def test_the_loss_is_that_of_the_paper(temperature, weight, smoothing):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 1])
    total = 0.0
    for logits, wanted, label in zip(s, t, labels, strict=True):
        p, q = torch.exp(wanted / temperature), torch.exp(logits / temperature)
        p, q = p / p.sum(), q / q.sum()
        soft = float((p * (p / q).log()).sum())
        plain = torch.exp(logits) / torch.exp(logits).sum()
        target = torch.full((4,), smoothing / 4, dtype=torch.float64)
        target[label] += 1 - smoothing
        hard = -float((target * plain.log()).sum())
        total += weight * temperature**2 * soft + (1 - weight) * hard
    settings = DistillSettings(temperature=temperature, weight=weight)
    found = distillation_loss(s, t, labels, settings, smoothing)
    assert float(found) == pytest.approx(total / 5, rel=1e-12)


def test_a_step_follows_the_gradient_of_the_loss(tmp_path):
    net, teacher, batch = conv_net(), taught().eval(), next(iter(synthetic().train))
    images = batch[0]
    expected = copy.deepcopy(net).train()
    settings = DistillSettings(**DISTILL)
    with torch.no_grad():
        wanted = teacher(images)
    distillation_loss(expected(images), wanted, batch[1], settings).backward()
    step = default_training_step(TrainSettings(distill=settings), teacher)
    step(batch, net.train()).backward()
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_stays_as_it_was_and_is_in_no_checkpoint(tmp_path):
    teacher = taught().train()
    teacher[1].eval()
    before, modes = copy.deepcopy(teacher.state_dict()), [m.training for m in teacher.modules()]
    net, _ = train(tmp_path, teacher=teacher, epochs=1)
    assert same_weights(before, teacher.state_dict())
    assert modes == [m.training for m in teacher.modules()]
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    size = sum(t.numel() for t in net.state_dict().values())
    payload = load_checkpoint(tmp_path / "checkpoint.pt")
    assert sum(t.numel() for t in payload["model"].values()) == size
    assert set(payload["identity"]["settings"]["distill"]) == {"temperature", "weight"}
    assert len(payload["identity"]["teacher"]) == 16


def test_it_changes_what_is_learned_and_nothing_random(tmp_path):
    """With no weight on the teacher the run is the plain one, bit for bit."""
    plain, history = train(tmp_path / "plain", distill=None)
    none, same = train(tmp_path / "none", teacher=taught(), distill={"weight": 0.0})
    assert same_weights(plain.state_dict(), none.state_dict())
    assert history == same
    other, _ = train(tmp_path / "other", teacher=taught())
    assert not same_weights(plain.state_dict(), other.state_dict())


@pytest.mark.slow
def test_a_student_comes_to_say_what_its_teacher_says(tmp_path):
    """Labels say nothing here: a teacher that is wrong on purpose is followed."""
    teacher = taught()
    net, _ = train(
        tmp_path, conv_net(), teacher=teacher, distill={"weight": 1.0, "temperature": 2.0},
        epochs=30, keep="last",
    )  # fmt: skip
    images = torch.cat([x for x, _ in synthetic().train])
    with torch.no_grad():
        said, wanted, before = (n.eval()(images).softmax(1) for n in (net, teacher, conv_net()))
    assert (said - wanted).pow(2).mean() < 0.2 * (before - wanted).pow(2).mean()


@pytest.mark.parametrize("settings", [{}, {"amp": "bf16", "channels_last": True}])
def test_resume_in_the_middle_of_an_epoch_changes_nothing(tmp_path, settings):
    left = [6]

    def stop():
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    whole, expected = train(tmp_path / "whole", teacher=taught(), **settings)
    with pytest.raises(Stop):
        train(tmp_path / "cut", teacher=taught(), after_step=stop, **settings)
    resumed, found = train(
        tmp_path / "cut", conv_net(5, 0.3), teacher=taught(), resume=True, **settings
    )
    assert same_weights(whole.state_dict(), resumed.state_dict())
    assert found == expected


def test_another_teacher_is_another_run(tmp_path):
    train(tmp_path, teacher=taught(), epochs=1)
    with pytest.raises(CheckpointError, match=r"teacher was '\w{16}', is '\w{16}'"):
        train(tmp_path, teacher=taught(10), epochs=1, resume=True)
    with pytest.raises(CheckpointError, match=r"distill\.weight was 0\.6, is 0\.7"):
        train(tmp_path, teacher=taught(), epochs=1, distill={"temperature": 3.0}, resume=True)


@pytest.mark.parametrize(
    ("teacher", "distill", "said"),
    [
        (None, DISTILL, "distill: needs teacher=, the dense network"),
        (taught(), None, "teacher: needs distill in the settings"),
        (nn.Sequential(*conv_net()[:-1], nn.Linear(32, 5)), DISTILL,
         r"distill: the teacher says \(16, 5\) where the network says \(16, 4\)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(tmp_path, teacher, distill, said):
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, teacher=teacher, distill=distill)


def test_a_network_does_not_teach_itself(tmp_path):
    net = conv_net()
    with pytest.raises(ConfigError, match="teacher: shares parameters with the model"):
        train(tmp_path, net, teacher=net)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"weight": 1.5}, {"wait": 0.5}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        FinetuneSettings(distill=wrong)


def test_a_pruner_trains_with_a_teacher_and_resumes(tmp_path):
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    settings = TrainSettings(epochs=3, optimizer={"lr": 0.05}, distill=DISTILL)

    def prune(folder, **options):
        net = conv_net(dropout=0.3)
        given = {"teacher": taught(), **options}
        evaluator = make_evaluator(
            net, synthetic(), settings, directory=tmp_path / folder, device="cpu", seed=7,
            progress=False, **given,
        )  # fmt: skip
        pruner = SlimmingPruner(net, config, evaluator)
        pruner.compress(max_epochs=3)
        pruner.unwrap_model()
        return net.state_dict()

    left = [6]

    def stop():
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    whole = prune("whole")
    with pytest.raises(Stop):
        prune("cut", after_step=stop)
    assert same_weights(whole, prune("cut", resume=True))
    assert not same_weights(whole, prune("other", teacher=taught(10)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"distill": {}}}, "train.distill: the dense network has no teacher"),
        ({"finetune": {"distill": {}, "from_scratch": True}}, "finetune.distill: the dense netw"),
        ({"sparsify": {"distill": {}}}, "sparsify.distill: the dense network is not trained"),
        (
            {
                "model": {"name": "resnet8", "weights": {"file": "x.pt", "head": "new"}},
                "finetune": {"distill": {}},
            },
            "finetune.distill: the dense network is not trained: add a train section for its new h",
        ),
    ],
)
def test_a_recipe_has_a_teacher_to_learn_from(changes, said):
    with pytest.raises(ValidationError, match=said):
        Recipe(
            **{
                "model": {"name": "resnet8"},
                "data": {"name": "digits"},
                "prune": {"method": "slimming", "budget": {"macs": 0.5}},
                **changes,
            }
        )
