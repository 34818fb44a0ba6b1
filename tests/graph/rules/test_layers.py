"""One small network per layer: what goes with a channel, what keeps its width and why."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import line_of, randn, randomise, rows_off, shrink
from torch import nn

from nni_gconv.graph import Coupling


def test_transposed_convolution():
    net = middle(
        lambda s, x: F.relu(s.bn(s.up(x))),
        width=6,
        up=nn.ConvTranspose2d(8, 6, 2, stride=2),
        bn=nn.BatchNorm2d(6),
    )
    masks = {**rows_off(net, "stem", [1, 2]), **rows_off(net, "bn", [0, 4])}
    weight, bias = torch.ones_like(net.up.weight), torch.ones_like(net.up.bias)
    weight[:, [0, 4]] = 0
    bias[[0, 4]] = 0
    shrink(net, X, {**masks, "up": {"weight": weight, "bias": bias}})
    assert tuple(net.up.weight.shape[:2]) == (6, 4)
    assert (net.up.in_channels, net.up.out_channels, net.head.in_channels) == (6, 4, 4)


def rows_off_transposed(net, name, rows):
    """Masks for places of the second axis and, group by group, what they make in the bias."""
    layer = net.get_submodule(name)
    weight, bias = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
    weight[:, rows] = 0
    bias.view(layer.groups, -1)[:, rows] = 0
    return {name: {"weight": weight, "bias": bias}}


def test_grouped_transposed_convolution():
    net = middle(
        lambda s, x: F.relu(s.bn(s.up(x))), width=12,
        up=nn.ConvTranspose2d(8, 12, 2, groups=2), bn=nn.BatchNorm2d(12),
    )  # fmt: skip
    assert [s.size for s in Coupling.trace(net, X).sets] == [8, 6, 4]
    # Inputs: one of the first group, two of the second. Outputs: the same places of both groups.
    masks = {**rows_off(net, "stem", [1, 5, 6]), **rows_off(net, "bn", [1, 7, 3])}
    masks |= rows_off_transposed(net, "up", [1])
    speedup = shrink(net, X, masks)
    assert (net.up.in_channels, net.up.out_channels, net.up.groups) == (6, 10, 2)
    assert "groups of up: channels stay" in " ".join(speedup.report().notes)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_transposed_convolution(multiplier):
    """Bilinear upsampling, as segmentation nets learn it."""
    net = middle(
        lambda s, x: s.up(x), width=8 * multiplier,
        up=nn.ConvTranspose2d(8, 8 * multiplier, 4, stride=2, groups=8),
    )  # fmt: skip
    masks = rows_off(net, "stem", [1, 5])
    weight, bias = torch.ones_like(net.up.weight), torch.ones_like(net.up.bias)
    weight[[1, 5]] = 0
    bias.view(8, -1)[[1, 5]] = 0
    shrink(net, X, {**masks, "up": {"weight": weight, "bias": bias}})
    assert (net.up.in_channels, net.up.groups, net.up.out_channels) == (6, 6, 6 * multiplier)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv1d_and_conv3d(rank):
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[rank]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[rank]
    pool = {1: nn.MaxPool1d, 3: nn.AvgPool3d}[rank]
    net = randomise(nn.Sequential(kind(3, 8, 3), norm(8), nn.ReLU(), pool(2), kind(8, 4, 1)))
    dummy = randn(2, 3, *[7] * rank)
    shrink(net, dummy, rows_off(net, "0", [0, 1, 6], "1"))
    assert (net[0].out_channels, net[1].num_features, net[4].in_channels) == (5, 5, 5)


def test_unbatched_input():
    net = randomise(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))
    shrink(net, randn(3, 6, 6), rows_off(net, "0", [2]))
    assert net[0].out_channels == 7


def test_linear_layers_on_sequences():
    net = randomise(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2))
    )
    shrink(net, randn(2, 7, 5), {**rows_off(net, "0", [1, 3]), **rows_off(net, "2", [0])})
    assert [tuple(net[i].weight.shape) for i in (0, 2, 4)] == [(6, 5), (5, 6), (2, 5)]


def test_bias_without_norm():
    """A filter without its bias still emits the bias: zeroed when asked, folded when told."""
    net = randomise(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))
    masks = rows_off(net, "0", [2, 5])
    shrink(net, X, masks)
    assert net[0].out_channels == 6


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu(slopes):
    net = middle(lambda s, x: s.act(s.a(x) - 0.0), a=conv(8, 8), act=nn.PReLU(slopes))
    shrink(net, X, rows_off(net, "a", [3, 4]))
    assert (net.a.out_channels, net.act.num_parameters) == (6, min(slopes, 6))


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm(affine):
    net = middle(
        lambda s, x: F.relu(s.norm(s.a(x))), a=conv(8, 8), norm=nn.InstanceNorm2d(8, affine=affine)
    )
    others = ["norm"] if affine else []
    shrink(net, X, rows_off(net, "a", [3, 4], *others))
    assert (net.a.out_channels, net.head.in_channels) == (6, 6)
    assert net.norm.num_features == 6


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.BatchNorm1d])
def test_norm_over_what_a_linear_layer_makes(kind):
    """Statistics are taken along the last dimension, in which the channels run."""
    norm = kind(8, track_running_stats=False)
    net = randomise(nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 2)))
    assert "normalised over channels" in reasons(net, randn(2, 8, 5))["0"]
    shrink(net, randn(2, 8, 5), rows_off(net, "0", [1, 3]), smaller=False)


def test_batch_norm_of_the_batch():
    net = middle(
        lambda s, x: F.relu(s.norm(s.a(x))),
        a=conv(8, 8),
        norm=nn.BatchNorm2d(8, track_running_stats=False),
    )
    shrink(net, X, rows_off(net, "a", [3, 4], "norm"))
    assert (net.a.out_channels, net.norm.num_features) == (6, 6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("groups", "gone", "left"), [(4, [2, 3, 6], 6), (8, [1, 6], 6)])
def test_group_norm(groups, gone, left, affine):
    """What is normalised together goes together: half a group stays, as zeros."""
    net = middle(
        lambda s, x: F.relu(s.norm(s.a(x))),
        a=conv(8, 8),
        norm=nn.GroupNorm(groups, 8, affine=affine),
    )
    others = ["norm"] if affine else []
    shrink(net, X, rows_off(net, "a", gone, *others))
    assert shapes(net, "a", "head") == [(left, 8), (4, left)]
    assert (net.norm.num_groups, net.norm.num_channels) == (groups * left // 8, left)


def test_group_norm_called_twice_in_a_residual_net():
    net = middle(
        lambda s, x: F.relu(x + s.b(F.relu(s.norm(s.a(F.relu(s.norm(x))))))),
        a=conv(8, 8), b=conv(8, 8), norm=nn.GroupNorm(4, 8),
    )  # fmt: skip
    shrink(net, X, rows_off(net, "stem", [4, 5], "a", "b", "norm"))
    assert shapes(net, "stem", "a", "b") == [(6, 3), (6, 6), (6, 6)]
    assert net.norm.num_groups == 3


class GroupsInForward(nn.Module):
    def forward(self, x):
        return F.group_norm(x, 4)


def test_group_norm_with_groups_in_the_forward_keeps_its_width():
    net = middle(lambda s, x: s.a(s.norm(x)), a=conv(8, 8), norm=GroupsInForward())
    why = reasons(net, X)["stem"]
    assert "the number of groups is written in the forward" in why
    assert line_of(GroupsInForward, "F.group_norm") in why
    shrink(net, X, {**rows_off(net, "stem", [2, 3]), **rows_off(net, "a", [2])})
    assert shapes(net, "stem", "a") == [(8, 3), (7, 8)]


def test_scale_parameter_follows():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = conv(3, 8), conv(8, 4)
            self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
            self.register_buffer("stretch", torch.rand(8, 1, 1))

        def forward(self, x):
            return self.head(self.a(x) * self.scale / (1 + self.stretch))

    net = randomise(Scaled())
    gone = torch.ones(1, 8, 1, 1)
    gone[:, [1, 6]] = 0
    shrink(net, X, {"": {"scale": gone}})  # only the scale is masked: that zeroes it
    assert net.a.out_channels == 6
    assert (tuple(net.scale.shape), tuple(net.stretch.shape)) == ((1, 6, 1, 1), (6, 1, 1))
    net = randomise(Scaled())
    shrink(net, X, rows_off(net, "a", [0, 1, 2]))
    assert tuple(net.scale.shape) == (1, 5, 1, 1)


def test_parameter_that_is_added_goes_too():
    net = middle(lambda s, x: F.relu(x + s.more.weight[:, :, None, None]), more=nn.Linear(8, 1))
    shrink(net, X, rows_off(net, "stem", [0]))


def test_weight_that_is_also_an_output():
    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = conv(3, 8), conv(8, 4)

        def forward(self, x):
            return self.head(F.relu(self.a(x))), self.a.weight

    net = randomise(Penalised())
    shrink(net, X, rows_off(net, "a", [1]), smaller=False)


def test_computed_weights_are_left_alone():
    net = middle(
        lambda s, x: s.b(F.relu(s.a(x))),
        a=nn.utils.parametrizations.weight_norm(conv(8, 8)),
        b=conv(8, 8),
    )
    shrink(net, X, {**rows_off(net, "stem", [0]), **rows_off(net, "b", [0])})
    assert shapes(net, "stem", "b") == [(8, 3), (7, 8)]
