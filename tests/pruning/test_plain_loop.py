"""Pruners in a training loop that is someone else's: as in NNI's evaluator, number for number."""

import nni
import pytest
import torch
from nni.compression import TorchEvaluator
from torch import nn

from nni_gconv import (
    FPGMPruner,
    GroupConvPruner,
    GSparsityPruner,
    ModelSpeedup,
    ShufflePruner,
    SlimmingPruner,
)
from nni_gconv.errors import ConfigError
from nni_gconv.pruning import PlainLoop

CONVS = [{"op_types": ["Conv2d"]}]
HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
STEPS, EPOCHS = 4, 3
X = torch.randn(STEPS, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CASES = [
    (FPGMPruner, HALF, {"schedule": "cubic"}),
    (SlimmingPruner, CONVS, {"budget": {"macs": 0.5}, "strength": 1e-2}),
    (GSparsityPruner, CONVS, {"budget": {"macs": 0.5}}),
    (ShufflePruner, CONVS, {"budget": {"macs": 0.5}}),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def loss_of(images, net):
    return nn.functional.cross_entropy(net(images), torch.arange(len(images)) % 4)


def train(net, optimizer):
    for _ in range(EPOCHS):
        for images in X:
            optimizer.zero_grad()
            loss_of(images, net).backward()
            optimizer.step()


def by_evaluator(kind, config, options):
    net = network()
    sgd = nni.trace(torch.optim.SGD)(net.parameters(), lr=0.05, momentum=0.9)
    made = TorchEvaluator(lambda m, o, *_: train(m, o), sgd, loss_of, dummy_input=X[0][:1])
    made.steps_per_epoch = STEPS
    pruner = kind(net, config, made, dummy_input=X[0][:1], **options)
    _, masks = pruner.compress(max_epochs=EPOCHS)
    pruner.unwrap_model()
    return net, masks


@pytest.mark.parametrize(("kind", "config", "options"), CASES)
@pytest.mark.parametrize("made", ["before", "after", "found"])
def test_it_does_what_it_does_in_nnis_evaluator(kind, config, options, made):
    reference, expected = by_evaluator(kind, config, options)
    net = network()

    def sgd():
        return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    optimizer = sgd() if made == "before" else None
    told = PlainLoop(steps_per_epoch=STEPS)
    pruner = kind(net, config, told, dummy_input=X[0][:1], **options)
    optimizer = optimizer or sgd()
    shown = None if made == "found" else optimizer
    with pruner.training(shown, epochs=EPOCHS) as loop:
        train(net, optimizer)
    assert loop.steps == EPOCHS * STEPS
    masks = pruner.get_masks()
    pruner.unwrap_model()
    for name, targets in expected.items():
        for target, mask in targets.items():
            assert mask is masks[name][target] is None or torch.equal(masks[name][target], mask)
    for mine, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in net.parameters()} == {id(p) for p in trained}
    assert not optimizer._optimizer_step_pre_hooks
    speedup = ModelSpeedup(net, X[0][:1], masks)
    small = speedup.speedup_model()
    speedup.rebind_optimizer(optimizer)  # the one that trained goes on
    optimizer.zero_grad()
    loss_of(X[0], small).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda sgd: torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.9**step),
        lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS * STEPS),
        lambda sgd: torch.optim.lr_scheduler.OneCycleLR(sgd, 0.05, EPOCHS * STEPS + 1),
        lambda sgd: torch.optim.lr_scheduler.CyclicLR(sgd, 0.01, 0.05),
        lambda sgd: torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, patience=0),
    ],
)
@pytest.mark.parametrize("kind", [SlimmingPruner, GSparsityPruner])
def test_schedulers_made_before_go_on_in_every_group(kind, make):
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scheduler = make(sgd)
    loop = PlainLoop(steps_per_epoch=STEPS)
    pruner = kind(net, CONVS, loop, budget={"macs": 0.5}, dummy_input=X[0][:1])
    with pruner.training(sgd, epochs=EPOCHS):
        for images in [*X] * EPOCHS:
            sgd.zero_grad()
            loss_of(images, net).backward()
            sgd.step()
            asked = (
                [1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []
            )
            scheduler.step(*asked)
    rates = {group["lr"] for group in sgd.param_groups}
    assert len(sgd.param_groups) == 2
    assert len(rates) == 1


def test_what_a_training_needs_is_said():
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = FPGMPruner(net, HALF, dummy_input=X[0][:1], schedule="linear")
    with pytest.raises(ConfigError, match="steps_per_epoch=len"), pruner.training(sgd, epochs=3):
        pass
    length = {"epochs": 3, "steps_per_epoch": 4}
    with pytest.raises(ConfigError, match="took a step"), pruner.training(sgd, **length):
        pass
    other = torch.optim.SGD(network().parameters(), lr=0.1)
    words = "none of the model's parameters"
    with pytest.raises(ConfigError, match=words), pruner.training(other, **length):
        pass
    assert not pruner.in_training


def test_an_error_in_the_loop_leaves_nothing_watching():
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = SlimmingPruner(net, HALF, dummy_input=X[0][:1])
    with pytest.raises(KeyboardInterrupt), pruner.training(sgd):
        raise KeyboardInterrupt
    assert not sgd._optimizer_step_pre_hooks
    before = pruner.clock.step
    train(net, sgd)
    assert pruner.clock.step == before


def test_groups_are_shaped_in_it():
    net = network()
    options = {"dummy_input": X[0][:1], "shaping": 1.0}
    config = [{"op_names": ["3"], "num_groups": 4}]
    pruner = GroupConvPruner(net, config, PlainLoop(steps_per_epoch=STEPS), **options)
    with pruner.training(epochs=EPOCHS):
        train(net, torch.optim.SGD(net.parameters(), lr=0.05))
    assert int(pruner.get_masks()["3"]["weight"].sum()) == 16 * 8 * 9 // 4


def test_another_optimizer_does_not_count():
    net, other = network(), network()
    pruner = SlimmingPruner(net, HALF, dummy_input=X[0][:1])
    with pruner.training() as loop:
        train(other, torch.optim.SGD(other.parameters(), lr=0.05))
        assert loop.steps == 0
        train(net, torch.optim.SGD(net.parameters(), lr=0.05))
    assert loop.steps == EPOCHS * STEPS
