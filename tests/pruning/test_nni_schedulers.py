"""NNI's scheduling pruners around ours, as NNI's own tests drive them: theirs is the evaluator."""

from __future__ import annotations

import pytest
import torch
from nni.compression.pruning import AGPPruner, LinearPruner
from nni.compression.utils import auto_set_denpendency_group_ids
from nni_evaluator import evaluator
from pruner_cases import GROUP_PRUNERS, PRUNERS
from pruning_nets import GroupBlock, conv
from torch import nn

from nni_gconv import FPGMPruner, GroupConvPruner, ModelSpeedup
from nni_gconv.errors import ConfigError
from nni_gconv.profiling import count

X = torch.zeros(2, 3, 8, 8)
HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
SCHEDULES = pytest.mark.parametrize("schedule", [LinearPruner, AGPPruner])


def shares(inner, layer="conv3"):
    """Share of a layer's filters that is left each time masks are made."""
    seen, generate = [], inner.generate_masks

    def watched():
        masks = generate()
        seen.append(float(masks[layer]["weight"].mean()))
        return masks

    inner.generate_masks = watched
    return seen


@SCHEDULES
@pytest.mark.parametrize("name", PRUNERS)
def test_a_scheduler_that_owns_the_evaluator(schedule, name):
    torch.manual_seed(0)
    net = GroupBlock()
    inner = PRUNERS[name](net, HALF, dummy_input=X)
    seen = shares(inner)
    pruner = schedule(inner, interval_steps=2, total_times=4, evaluator=evaluator(net))
    _, masks = pruner.compress(8, None)
    pruner.unwrap_model()
    linear = [0.875, 0.75, 0.625, 0.5]
    assert seen == (linear if schedule is LinearPruner else [0.6875, 0.5625, 0.5, 0.5])
    ModelSpeedup(net, X, masks).speedup_model()
    assert (net.stem.out_channels, net.conv1.out_channels) == (8, 12)


@SCHEDULES
def test_a_budget_follows_the_scheduler(schedule):
    """NNI moves ratios; of a budget as much is asked as of a ratio then."""
    torch.manual_seed(0)
    net = GroupBlock()
    dense = count(net, X).macs
    inner = FPGMPruner(net, [{"op_types": ["Conv2d"]}], dummy_input=X, budget={"macs": 0.4})
    asked, ramped = [], inner.cost.ramped

    def watched(budget, share):
        asked.append(share)
        return ramped(budget, share)

    inner.cost.ramped = watched
    pruner = schedule(inner, interval_steps=1, total_times=4, evaluator=evaluator(net))
    _, masks = pruner.compress(4, None)
    pruner.unwrap_model()
    quarters = [0.25, 0.5, 0.75, 1.0]
    expected = quarters if schedule is LinearPruner else [1 - (1 - q) ** 3 for q in quarters]
    assert asked == pytest.approx(expected)
    assert count(ModelSpeedup(net, X, masks).speedup_model(), X).macs <= 0.4 * dense


@pytest.mark.slow
@SCHEDULES
@pytest.mark.parametrize("name", sorted(set(GROUP_PRUNERS) - {"gconv-shaping"}))
def test_groups_and_a_scheduler_that_owns_the_evaluator(schedule, name):
    net = GroupBlock()
    config = [{"op_types": ["Conv2d"], "num_groups": 4}]
    inner = GROUP_PRUNERS[name](net, config, dummy_input=X)
    owner = evaluator(net, steps_per_epoch=2)
    pruner = schedule(inner, interval_steps=1, total_times=4, evaluator=owner)
    _, masks = pruner.compress(4, None)
    pruner.unwrap_model()
    assert float(masks["conv3"]["weight"].mean()) == 0.25
    ModelSpeedup(net, X, masks).speedup_model()


def test_what_a_scheduler_would_lose_is_refused():
    """It asks the pruner for masks alone: no weights are fitted, no masks joined."""
    lost = {"reconstruct": True, "calibration": torch.randn(8, 3, 8, 8)}
    for options, name in (lost, "reconstruct"), ({"masks": groups_of(GroupBlock())}, "masks"):
        net = GroupBlock()
        inner = FPGMPruner(net, HALF, dummy_input=X, **options)
        pruner = LinearPruner(inner, interval_steps=1, total_times=2, evaluator=evaluator(net))
        with pytest.raises(ConfigError, match=f"{name}: is lost where another pruner drives"):
            pruner.compress(2, None)


def groups_of(net):
    config = [{"op_names": ["conv3"], "num_groups": 2}]
    return GroupConvPruner(net, config, dummy_input=X, restarts=0).compress()[1]


class Residual(nn.Module):
    """Two convolutions whose outputs are added, and two linear layers, as in NNI's tests."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 8), conv(8, 16), conv(8, 16)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(n) for n in (8, 16, 16))
        self.fc1, self.fc2 = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + self.bn3(self.conv3(x)))
        return self.fc2(torch.relu(self.fc1(x.mean((2, 3)))))


@pytest.mark.parametrize("name", PRUNERS)
def test_dependency_ids_that_nni_sets(name):
    """The config_list of NNI's own tests, and what they check of the masks and of the model."""
    torch.manual_seed(1)
    net = Residual()
    config = [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.75},
        {"op_names": ["fc1"], "sparse_ratio": 0.75},
    ]
    config = auto_set_denpendency_group_ids(net, config, X)
    assert any("dependency_group_id" in entry for entry in config)
    inner = PRUNERS[name](net, config, dummy_input=X)
    pruner = AGPPruner(inner, interval_steps=1, total_times=4, evaluator=evaluator(net))
    pruner.compress(5, None)
    pruner.unwrap_model()
    masks = pruner.get_masks()
    for layer in ("conv1", "conv2", "conv3", "fc1"):
        weight = masks[layer]["weight"]
        assert 1 - weight.mean() == 0.75
        assert torch.equal(weight.flatten(1).any(1).float(), masks[layer]["bias"])
    assert torch.equal(masks["conv2"]["bias"], masks["conv3"]["bias"])
    ModelSpeedup(net, X, masks).speedup_model()
    widths = [net.get_submodule(n).weight.shape[0] for n in ("conv1", "conv2", "conv3", "fc1")]
    assert widths == [2, 4, 4, 3]


@pytest.mark.parametrize(("steps", "epochs"), [(3, 2), (4, 2), (1, 1)])
def test_steps_alone_are_enough_for_a_schedule_in_epochs(steps, epochs):
    """FPGM renews its masks every epoch; how many there are follows from the steps."""
    net = GroupBlock()
    pruner = FPGMPruner(net, HALF, evaluator(net, steps_per_epoch=2), dummy_input=X)
    assert pruner.schedule.name == "constant"
    _, masks = pruner.compress(max_steps=steps)
    assert pruner.clock.epochs == epochs
    assert float(masks["conv3"]["weight"].mean()) == 0.5
