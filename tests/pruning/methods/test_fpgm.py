"""FPGM while it trains: filters that return, and filters that are locked away."""

from __future__ import annotations

import pytest
import torch
from pruning_nets import GroupBlock, loop_evaluator
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.zoo import create_model

#: Six filters whose two most replaceable are 2 and 0.
FILTERS = torch.tensor(
    [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0.6, 0.6, 0.1, 0],
        [0.5, 0.5, 0.5, 0.5],
        [3, 0, 0, 0],
        [0, 0, 0, 0.2],
    ]
)
THIRD = [{"op_names": ["0"], "sparse_ratio": 1 / 3}]


def net(filters=FILTERS):
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 6, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip
    made[0].weight.data = filters.view(6, 1, 2, 2).clone()
    return made


def gone(masks, name="0"):
    return (masks[name]["weight"].flatten(1).amax(1) == 0).nonzero().flatten().tolist()


def example():
    return torch.zeros(1, 1, 8, 8)


class Spy(FPGMPruner):
    """Remembers the masks, weights and momentum at the end of each epoch."""

    def __init__(self, *args, **options):
        self.seen = []
        super().__init__(*args, **options)

    def after_epoch(self, epoch):
        super().after_epoch(epoch)
        weight = self._target_spaces["0"]["weight"]
        momentum = self.optimizer.state[weight.target]["momentum_buffer"]
        self.seen.append((gone(self.get_masks()), weight.target.detach().clone(), momentum.clone()))


def trained(folder, *, epochs=3, filters=FILTERS, config=THIRD, **options):
    model = net(filters)
    evaluator = loop_evaluator(model, folder, epochs)
    pruner = Spy(model, config, evaluator, **options)
    return pruner, pruner.compress(max_epochs=epochs)[1]


def moved_away(pruner):
    """Move the kept filters, so that two of them become the most replaceable."""
    weight = pruner._target_spaces["0"]["weight"]
    with torch.no_grad():
        weight.target[3] = torch.tensor([0.1, 0.1, 0.1, 0.1]).view(1, 2, 2)
        weight.target[1] = torch.tensor([0.1, 0.2, 0.1, 0.1]).view(1, 2, 2)


def test_a_soft_choice_can_be_left():
    pruner = FPGMPruner(net(), THIRD, dummy_input=example())
    assert gone(pruner.compress()[1]) == [0, 2]
    assert gone(pruner.compress()[1]) == [0, 2]  # scored without the masks: the same again
    moved_away(pruner)
    masks = pruner.compress()[1]
    assert gone(masks) == [1, 3]
    assert masks["1"]["weight"].tolist() == [1, 0, 1, 0, 1, 1]


@pytest.mark.slow
def test_a_zeroed_filter_is_chosen_for_ever():
    """What the paper's code does to itself: zeros lie nearest to zeros."""
    filters = FILTERS.clone()
    filters[[0, 2]] = 0
    pruner = FPGMPruner(net(filters), THIRD, dummy_input=example())
    assert gone(pruner.compress()[1]) == [0, 2]
    filters = FILTERS + 5.0  # far from the origin, where zeros are no longer near the median
    filters[[0, 2]] = 0
    assert gone(FPGMPruner(net(filters), THIRD, dummy_input=example()).compress()[1]) == [0, 2]


@pytest.mark.parametrize("every", [1, 2])
def test_soft_weights_live_on_behind_their_masks(tmp_path, every):
    pruner, masks = trained(tmp_path, epoch_prune=every)
    first, weight, _ = pruner.seen[0]
    assert first == [0, 2]
    # Only weight decay acts on them: they keep their direction.
    for row in first:
        before, after = FILTERS[row], weight[row].flatten()
        assert torch.allclose(after / after.norm(), before / before.norm(), atol=1e-5)
        assert 0 < float(after.norm()) < float(before.norm())
    assert len(gone(masks)) == 2


def test_soft_filters_return_while_it_trains(tmp_path):
    class Pushed(Spy):
        def before_epoch(self, epoch):
            if epoch == 1:
                moved_away(self)

    model = net()
    pruner = Pushed(model, THIRD, loop_evaluator(model, tmp_path, 2, lr=1e-6))
    masks = pruner.compress(max_epochs=2)[1]
    assert [found for found, *_ in pruner.seen] == [[0, 2], [1, 3]]
    assert gone(masks) == [1, 3]


def test_locked_filters_are_zero_and_stay_so(tmp_path):
    class Pushed(Spy):
        def before_epoch(self, epoch):
            if epoch == 1:
                moved_away(self)

    model = net()
    evaluator = loop_evaluator(model, tmp_path, 3)
    pruner = Pushed(model, THIRD, evaluator, selection="locked")
    masks = pruner.compress(max_epochs=3)[1]
    for found, weight, momentum in pruner.seen:
        assert found == [0, 2]
        assert not weight[[0, 2]].any()
        assert not momentum[[0, 2]].any()
        assert momentum[[1, 3, 4, 5]].flatten(1).any(1).all()
    assert gone(masks) == [0, 2]


def test_locked_filters_join_on_a_ramp(tmp_path):
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    pruner, _ = trained(
        tmp_path, epochs=4, config=config, selection="locked", schedule={"name": "linear", "end": 3}
    )
    sets = [set(found) for found, *_ in pruner.seen]
    assert [len(s) for s in sets] == [1, 2, 3, 3]
    assert sets[0] < sets[1] < sets[2] == sets[3]
    assert not pruner.seen[-1][1][sorted(sets[2])].any()


def test_masks_are_renewed_every_few_epochs_and_at_the_end(tmp_path):
    made = []

    class Counting(FPGMPruner):
        def generate_masks(self):
            made.append(self.clock.epoch)
            return super().generate_masks()

    model = net()
    pruner = Counting(model, THIRD, loop_evaluator(model, tmp_path, 5), epoch_prune=2)
    pruner.compress(max_epochs=5)
    assert made == [0, 2, 4, 5]


def test_fixed_widths(tmp_path):
    """The widths of a published network: remove all, but keep so many."""
    config = [
        {"op_names": ["stem", "conv3"], "sparse_ratio": 1.0, "min_channels": 11},
        {"op_names": ["conv1", "conv2"], "sparse_ratio": 1.0, "min_channels": 8},
    ]
    model = GroupBlock(channels=1)
    pruner = FPGMPruner(model, config, loop_evaluator(model, tmp_path, 1))
    masks = pruner.compress(max_epochs=1)[1]
    kept = {n: int(masks[n]["weight"].flatten(1).any(1).sum()) for n in ("stem", "conv1", "conv3")}
    assert kept == {"stem": 11, "conv1": 8, "conv3": 11}


def test_forty_percent_inside_the_blocks_saves_what_is_known():
    """Counted for 10, 20 and 39 of 16, 32 and 64 filters, as the paper's code leaves."""
    network, image = create_model("resnet20"), torch.zeros(1, 3, 32, 32)
    dense = count(network, image).macs
    widths = zip(("1", "2", "3"), (10, 20, 39), strict=True)
    config = [
        {"op_names_re": [rf"layer{n}\.\d\.conv1"], "sparse_ratio": 1.0, "min_channels": width}
        for n, width in widths
    ]
    pruner = FPGMPruner(network, config, dummy_input=image)
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    small = ModelSpeedup(network, image, masks, verify=False).speedup_model()
    assert dense == 40_550_400 + 640  # with the classifier
    assert 1 - count(small, image).macs / dense == pytest.approx(0.376, abs=5e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"selection": "hard"}, "selection: unknown selection 'hard'"),
        ({"epoch_prune": 0, "evaluator": True}, "epoch_prune: 0 is not allowed"),
        ({"distance": "l3"}, "unknown distance 'l3'"),
        ({"norm_ratio": 1.0}, "norm_ratio: 1.0 is not allowed"),
        ({"norm_ratio": "a"}, "norm_ratio: 'a' is not allowed"),
    ],
)
def test_mistakes(tmp_path, options, said):
    model = net()
    if options.pop("evaluator", False):
        options["evaluator"] = loop_evaluator(model, tmp_path)
    with pytest.raises(ConfigError, match=said):
        FPGMPruner(model, THIRD, dummy_input=example(), **options)
