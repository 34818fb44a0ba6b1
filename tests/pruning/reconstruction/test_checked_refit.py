"""Reconstruction of whole networks: nearer to the dense outputs, still exactly the small one."""

import copy
import math

import pytest
import torch
from pruning_nets import GroupBlock, conv, mobile_net, plain_net, randomised
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import TensorDataset

from nni_gconv import FPGMPruner, GroupConvPruner, ModelSpeedup
from nni_gconv.errors import ConfigError, DataError
from nni_gconv.graph import Replay, state_of, trace
from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.reconstruction import ReconstructSettings, checked_refit, reconstruct
from nni_gconv.pruning.reconstruction.layers import find_layers
from nni_gconv.pruning.reconstruction.walk import Walk
from nni_gconv.pruning.registry import find_method

CONVS = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]


def images(count=96, channels=3, size=8, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def state(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def masked_outputs(model, masks, x):
    copied = copy.deepcopy(model).eval()
    modules = dict(copied.named_modules())
    with torch.no_grad():
        for name, targets in masks.items():
            for target, mask in targets.items():
                if mask is not None:
                    getattr(modules[name], target).mul_(mask)
        return copied(x)


def pruned(model, kind=FPGMPruner, config=CONVS, **options):
    pruner = kind(model, config, dummy_input=images(1), **options)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return pruner, masks


@pytest.mark.parametrize("helps", [True, False])
def test_norms_estimated_anew_have_to_help_the_last_fit_too(monkeypatch, helps):
    """A quick fit to half of the images may gain by them what the last fit does not."""
    model, x = randomised(plain_net()).eval(), images(64)
    _, masks = pruned(model)

    def renewed(job, state, seen):
        if len(seen) == len(x):  # after the last fit
            return job.dense if helps else job.masked
        return job.masked if state is job.masked else job.dense

    monkeypatch.setattr("nni_gconv.pruning.reconstruction.checked_refit._Job._renewed", renewed)
    done = reconstruct(model, masks, x)
    assert done.refitted
    assert done.recalibrated is helps


@pytest.mark.parametrize("make", [GroupBlock, plain_net, mobile_net])
def test_outputs_come_nearer_on_images_never_seen_and_small_is_masked(make):
    model = randomised(make()).eval()
    fresh = images(32, seed=9)
    with torch.no_grad():
        dense = model(fresh)
    _, masks = pruned(model)
    before = (masked_outputs(model, masks, fresh) - dense).square().mean()
    done = reconstruct(model, masks, images())
    after = masked_outputs(model, masks, fresh)
    assert done.error <= done.without
    assert (after - dense).square().mean() < before
    small = ModelSpeedup(model, images(1), masks).speedup_model().eval()
    with torch.no_grad():
        assert torch.allclose(small(fresh), after, atol=1e-4 * float(after.abs().max()))


def test_groups_are_refitted_and_zeros_stay():
    model = randomised(plain_net()).eval()
    config = [{"op_types": ["Conv2d"], "num_groups": 2}]
    _, masks = pruned(model, GroupConvPruner, config)
    fresh = images(32, seed=9)
    with torch.no_grad():
        dense = model(fresh)
    before = (masked_outputs(model, masks, fresh) - dense).square().mean()
    assert reconstruct(model, masks, images()).refitted
    assert (masked_outputs(model, masks, fresh) - dense).square().mean() < before


@pytest.mark.slow
def test_the_option_of_a_pruner_does_the_same():
    model = randomised(GroupBlock()).eval()
    other = copy.deepcopy(model)
    pruner, _masks = pruned(model, calibration=images(), reconstruct=True)
    assert pruner.reconstruction.refitted
    _, same = pruned(other)
    reconstruct(other, same, images())
    for name, tensor in state(other).items():
        assert torch.equal(tensor, state(model)[name]), name


def test_weights_come_near_to_another_network_where_one_is_given():
    dense = randomised(plain_net()).eval()
    model = copy.deepcopy(dense)
    _, masks = pruned(model)
    with torch.no_grad():  # as after a training in which masks hid them
        for name, targets in masks.items():
            hidden = targets["weight"] == 0
            model.get_submodule(name).weight[hidden] = 7.0
    fresh = images(32, seed=9)
    with torch.no_grad():
        wanted = dense(fresh)
    before = (masked_outputs(model, masks, fresh) - wanted).square().mean()
    reconstruct(model, masks, images(), aim=state(dense))
    assert (masked_outputs(model, masks, fresh) - wanted).square().mean() < before


@pytest.mark.parametrize(("schedule", "hidden"), [("constant", True), ("one-shot", False)])
def test_what_masks_have_hidden_in_training_is_no_aim(schedule, hidden, monkeypatch):
    model = randomised(plain_net())
    began = copy.deepcopy(state(model))
    aims = []
    monkeypatch.setattr(
        "nni_gconv.pruning.pruner.reconstruct", lambda *_, aim, **__: aims.append(aim)
    )
    x = images(8)
    pruner = FPGMPruner(
        model, CONVS, dummy_input=x[:1], calibration=x, reconstruct=True, schedule=schedule
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with pruner.training(optimizer, epochs=2, steps_per_epoch=1):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    (aim,) = aims
    assert (aim is not None) == hidden
    if hidden:
        assert all(torch.equal(aim[name], tensor) for name, tensor in began.items())


def test_what_masks_hide_stays_as_it_was():
    model = randomised(plain_net()).eval()
    dense = copy.deepcopy(model)
    _, masks = pruned(model)
    reconstruct(model, masks, images())
    for name, targets in masks.items():
        for target, mask in targets.items():
            if mask is not None:
                new = getattr(model.get_submodule(name), target)
                old = getattr(dense.get_submodule(name), target)
                assert torch.equal(new[mask == 0], old[mask == 0])


def test_nothing_masked_is_left_alone():
    model = randomised(plain_net()).eval()
    before = copy.deepcopy(model)
    done = reconstruct(model, {}, images())
    assert not (done.refitted or done.recalibrated)
    assert all(torch.equal(t, state(before)[n]) for n, t in state(model).items())


def test_a_fit_that_turns_out_worse_than_the_quick_one_promised_is_left(monkeypatch):
    quick_or_not = checked_refit._Job._fitted

    def fitted(job, images, *, quick=False):
        state = quick_or_not(job, images, quick=quick)
        return state if quick else {name: 10 * tensor for name, tensor in state.items()}

    monkeypatch.setattr(checked_refit._Job, "_fitted", fitted)
    model = randomised(plain_net()).eval()
    before = copy.deepcopy(model)
    _, masks = pruned(model)
    done = reconstruct(model, masks, images())
    assert not (done.refitted or done.recalibrated)
    assert done.error == done.without
    assert all(torch.equal(t, state(before)[n]) for n, t in state(model).items())


def test_a_redundant_channel_is_made_up_for_exactly():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = net[0].weight[0], net[0].bias[0]
        dense = net(images(8, seed=5))
        mask, bias = torch.ones_like(net[0].weight), torch.ones(4)
        mask[3] = bias[3] = 0
        masks = {"0": {"weight": mask, "bias": bias}}
        reconstruct(net, masks, images(), settings=ReconstructSettings(ridge=1e-9))
        assert torch.allclose(masked_outputs(net, masks, images(8, seed=5)), dense, atol=1e-4)


def test_what_is_shared_is_left_and_named():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 4), conv(4, 2))
    net[2].bias = net[0].bias
    net[4].weight = net[2].weight
    layers, left = find_layers(trace(net.eval(), images(1)))
    assert left == {
        "0.weight": "its bias is used more than once",
        "2.weight": "its weight is used more than once",
    }
    assert [layer.weight for layer in layers] == ["5.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 2**31], ids=["in rounds", "waiting"])
def test_several_batches_come_near_what_one_batch_gives(memory):
    model = randomised(GroupBlock()).eval()
    _, masks = pruned(model)
    kept = {f"{m}.{t}": x > 0 for m, ts in masks.items() for t, x in ts.items() if x is not None}
    dense = {n: t.detach() for n, t in state(model).items()}
    x, fresh = images(64), images(32, seed=9)
    errors = {}
    for count in (1, 4):
        batches = x.chunk(count)
        walk = Walk(trace(model, batches[0]), batches, memory=memory, rounds=100)
        found = walk.refit(dense, kept)
        outputs = Replay(trace(model, fresh)).run([dense, found], [fresh])
        errors[count] = float((outputs[0][0] - outputs[1][0]).square().mean())
    assert errors[4] == pytest.approx(errors[1], rel=0.3)


class Convolutions(TorchFunctionMode):
    """Counts those that run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += "conv2d" in str(function)
        return function(*args, **(kwargs or {}))


def stack(depth):
    layers = [m for _ in range(depth) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("batches", [1, 3])
def test_where_values_can_wait_each_layer_runs_once(depth, batches):
    """The last one needs no run of the pruned network."""
    model, parts = stack(depth), images(12).chunk(batches)
    walk = Walk(trace(model, parts[0]), parts)
    with Convolutions() as run:
        walk.refit(state_of(model), {})
    assert run.count == batches * (2 * depth - 1)


def test_what_cannot_wait_runs_again_from_where_values_could():
    """The third and the fourth of five layers read too much, and are refitted together."""
    model, parts = stack(5), images(12).chunk(3)
    walk = Walk(trace(model, parts[0]), parts, rounds=2)
    large = dict.fromkeys((layer.node for layer in walk._layers[2:4]), 2**40)
    elements = walk._replay.elements() | large
    walk._replay.elements = lambda: elements
    with Convolutions() as run:
        walk.refit(state_of(model), {})
    # What was run for their sums: the pruned second and third, the dense third and fourth.
    assert run.count == 3 * (2 * 5 - 1 + 4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    model = randomised(GroupBlock()).eval()
    _, masks = pruned(model)
    twice = [copy.deepcopy(model) for _ in range(2)]
    for one in twice:
        reconstruct(one, masks, images(), seed=3)
    assert all(torch.equal(t, state(twice[1])[n]) for n, t in state(twice[0]).items())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "0 images"),
        ([torch.zeros(1, 3, 8, 8)], "1 images"),
        ([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 9, 9)], r"\(3, 8, 8\) and of shape"),
        ([torch.full((2, 3, 8, 8), math.nan)], "not finite"),
        (["image.png"], "a batch begins with a str"),
        (TensorDataset(torch.zeros(8, 3, 8, 8)), r"DataLoader\(dataset, batch_size=256"),
    ],
)
def test_images_that_cannot_be_used_are_one_line(source, words):
    with pytest.raises(DataError, match=words):
        Calibration(source)


def test_images_of_another_size_change_nothing():
    model = randomised(plain_net()).eval()
    before = copy.deepcopy(model)
    _, masks = pruned(model)
    words = r"calibration: the model does not run on images of shape \(5, 8, 8\): "
    with pytest.raises(DataError, match=words):
        reconstruct(model, masks, torch.randn(8, 5, 8, 8))
    assert all(torch.equal(t, state(before)[n]) for n, t in state(model).items())


def test_fewer_images_than_channels_do_no_harm():
    model = randomised(plain_net()).eval()
    _, masks = pruned(model)
    done = reconstruct(model, masks, images(4, size=4))
    assert done.error <= done.without


def test_reconstruct_without_images_says_what_to_give():
    with pytest.raises(ConfigError, match=r"prune\.calibration"):
        FPGMPruner(plain_net(), CONVS, dummy_input=images(1), reconstruct=True)


@pytest.mark.parametrize("method", ["fpgm", "gconv", "second_order", "taylor"])
def test_calibration_images_are_read_once(method):
    """A loader may be slow, and a generator gives its images but once."""
    config = [{"op_types": ["Conv2d"], **({"num_groups": 2} if method == "gconv" else
                                          {"sparse_ratio": 0.5})}]  # fmt: skip
    batches = iter([(images(8), torch.arange(8) % 4)])
    find_method(method).make(
        plain_net(), config, None, dummy_input=images(1), calibration=batches, reconstruct=True
    )


def norm_of_vectors():
    """A batch norm that sees one value a channel of each image."""
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize(("count", "batch_size"), [(66, 32), (65, 32), (6, 2), (3, 8), (2, 8)])
def test_a_last_batch_of_one_image_is_no_trouble(count, batch_size):
    model = norm_of_vectors()
    _, masks = pruned(model)
    calibration = Calibration(images(count), images=count, batch_size=batch_size)
    done = reconstruct(model, masks, calibration)
    assert done.error <= done.without


def test_statistics_that_two_images_cannot_show_are_refused():
    model = norm_of_vectors()
    _, masks = pruned(model)
    before = copy.deepcopy(state(model))
    settings = ReconstructSettings(recalibrate_bn=True)
    with pytest.raises(DataError, match="at least two images"):
        reconstruct(model, masks, images(2), settings=settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
