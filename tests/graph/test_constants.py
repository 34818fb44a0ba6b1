"""What a masked filter leaves behind: zeroed and reported, or folded into the next bias."""

import math

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import conv, middle, shapes
from speedup_tools import (
    assert_same_outputs,
    masked,
    outputs_of,
    randn,
    randomise,
    rows_off,
    shrink,
)
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.graph import known_values, op_name, trace

X = randn(2, 3, 6, 6)


def one_constant(beta, after):
    """Build conv - BN with gamma 0 and shift `beta` in channel 1 - ReLU - `after`."""
    net = randomise(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *after)
    )
    gamma = torch.ones(4)
    gamma[1] = 0
    with torch.no_grad():
        net[1].bias[1] = beta
    return net, {"1": {"weight": gamma}}


@pytest.mark.parametrize(("beta", "gain"), [(0.4, [0.2, -0.4]), (-0.3, [0.0, 0.0])])
@pytest.mark.parametrize("bias", [True, False])
def test_constant_of_a_norm_goes_into_the_next_bias(beta, gain, bias):
    """Vector N9 of the reference: gamma 0, beta .4 before ReLU, w = [.5, -1]."""
    net, masks = one_constant(beta, [nn.Conv2d(4, 2, 1, bias=bias)])
    with torch.no_grad():
        net[3].weight[:, 1] = torch.tensor([0.5, -1.0])[:, None, None]
    before = net[3].bias.detach().clone() if bias else torch.zeros(2).double()
    shrink(net, X, masks, constants="fold")
    assert (net[0].out_channels, net[3].in_channels) == (3, 3)
    if not bias and beta < 0:
        assert net[3].bias is None
    else:
        assert torch.allclose(net[3].bias - before, torch.tensor(gain).double(), atol=1e-12)


def test_unpadded_convolution_takes_the_sum_of_its_kernel():
    net, masks = one_constant(0.4, [nn.Conv2d(4, 2, 3, dilation=2)])
    gain = 0.4 * net[3].weight[:, 1].sum((1, 2)).detach()
    before = net[3].bias.detach().clone()
    shrink(net, X, masks, constants="fold")
    assert torch.allclose(net[3].bias - before, gain)


@pytest.mark.parametrize("padding", [1, "same"])
def test_zero_padding_keeps_the_channel(padding):
    net, masks = one_constant(0.4, [nn.Conv2d(4, 2, 3, padding=padding)])
    shrink(net, X, masks, constants="fold", smaller=False)
    net, masks = one_constant(-0.4, [nn.Conv2d(4, 2, 3, padding=padding)])
    shrink(net, X, masks, constants="fold")  # the ReLU makes it zero


def test_reflected_padding_shows_no_border():
    net, masks = one_constant(0.4, [nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")])
    shrink(net, X, masks, constants="fold")
    assert net[3].in_channels == 3


def test_linear_behind_pooling_and_flatten():
    after = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5, bias=False), nn.ReLU()]
    net, masks = one_constant(0.4, after)
    gain = 0.4 * net[5].weight[:, 9:18].sum(1).detach()
    shrink(net, X, masks, constants="fold")
    assert net[5].in_features == 27
    assert torch.allclose(net[5].bias, gain)


def test_constants_run_through_several_layers():
    """A layer that reads only constants is one itself, and so on to the last one."""
    net, masks = one_constant(0.4, [nn.Conv2d(4, 3, 1), nn.Sigmoid(), nn.Conv2d(3, 2, 1)])
    masks["1"]["weight"] = torch.zeros(4)
    shrink(net, X, masks, constants="fold")
    assert (net[0].out_channels, net[3].out_channels) == (1, 1)


@pytest.mark.parametrize("middle", [nn.Conv2d(4, 3, 3, padding=1), nn.ConvTranspose2d(4, 3, 3)])
def test_border_of_a_constant_is_no_constant(middle):
    """A padded layer that reads nothing but constants shows its border."""
    net, masks = one_constant(0.4, [middle, nn.Sigmoid(), nn.Conv2d(3, 2, 1)])
    masks["1"]["weight"] = torch.zeros(4)
    with torch.no_grad():
        net[1].bias.fill_(0.4)
    shrink(net, X, masks, constants="fold", smaller=False)


def test_grouped_and_transposed_readers_keep_constants():
    for reader in (nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 2, 2)):
        net, masks = one_constant(0.4, [reader])
        shrink(net, X, masks, constants="fold", smaller=False)


class Twice(nn.Module):
    """One layer that reads channel 1 twice, with a constant of `first` and of `second`."""

    def __init__(self, first, second):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1, bias=False)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.reader, self.head = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 2, 1)
        randomise(self)
        with torch.no_grad():
            self.one.bias[1], self.two.bias[1] = first, second

    def forward(self, x):
        x = self.a(x)
        return self.head(self.reader(F.relu(self.one(x))) * self.reader(F.relu(self.two(x))))


@pytest.mark.parametrize(("first", "second", "goes"), [(0.4, 0.4, True), (0.4, 0.5, False)])
def test_one_bias_cannot_serve_two_constants(first, second, goes):
    net = Twice(first, second)
    gamma = torch.ones(4)
    gamma[1] = 0
    masks = {"one": {"weight": gamma}, "two": {"weight": gamma}}
    shrink(net, X, masks, constants="fold", smaller=goes)


def test_tied_biases_and_bare_parameters_take_nothing():
    class Net(nn.Module):
        def __init__(self, tie):
            super().__init__()
            self.a, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.weight = nn.Parameter(torch.rand(4, 4, 1, 1))
            if tie == "bias":
                self.c.bias = self.b.bias
            self.tie = tie

        def forward(self, x):
            x = torch.sigmoid(self.bn(self.a(x)))
            if self.tie == "bare":
                return F.conv2d(x, self.weight)
            return self.b(x) + self.c(2 * x)

    gamma = torch.ones(4)
    gamma[1] = 0
    for tie, goes in (("bias", False), ("bare", False), ("", True)):
        shrink(randomise(Net(tie)), X, {"bn": {"weight": gamma}}, constants="fold", smaller=goes)


def test_tied_weights_get_each_their_own_constant():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.c.weight = self.b.weight

        def forward(self, x):
            x = torch.sigmoid(self.bn(self.a(x)))
            return self.b(x) * self.c(2 * x)

    gamma = torch.ones(4)
    gamma[1] = 0
    net = randomise(Net())
    shrink(net, X, {"bn": {"weight": gamma}}, constants="fold")
    assert net.c.weight is net.b.weight
    assert net.b.in_channels == 3


def test_rows_of_the_reader_go_too():
    net = randomise(nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1),
    ))  # fmt: skip
    masks = {"0": {"weight": rows_off(net, "0", [2])["0"]["weight"]}, **rows_off(net, "2", [0, 3])}
    shrink(net, X, masks, constants="fold")
    assert (net[2].in_channels, net[2].out_channels, len(net[2].bias)) == (3, 3, 3)


def known_channels(net, dummy, masks, operator):
    """Return what is known of each channel behind the first operator of that name."""
    graph = trace(net, dummy)
    kept = {f"{m}.{t}".lstrip("."): x != 0 for m, ts in masks.items() for t, x in ts.items()}
    for node, value in known_values(graph, kept).items():
        if op_name(node) == operator:
            return None if value is None else value.flatten().tolist()
    raise AssertionError(operator)


@pytest.mark.parametrize("bias", [True, False])
def test_group_norm_of_constants(bias):
    """Only a group of equal constants is its own mean; filters without biases emit zeros."""
    net = randomise(nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 1),
    ))  # fmt: skip
    masks = {"0": {"weight": rows_off(net, "0", [0, 1, 2])["0"]["weight"]}}
    known = known_channels(net, X, masks, "group_norm")
    if bias:
        assert known is None
    else:
        assert known[:2] == net[1].bias[:2].tolist()
        assert all(math.isnan(value) for value in known[2:])
    shrink(net, X, masks, constants="fold", smaller=not bias)


def test_groups_of_a_transposed_convolution():
    """What one group reads is zero: its filters emit their biases, the others are unknown."""
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2, groups=2)))
    known = known_channels(net, X, rows_off(net, "0", [0, 1, 2]), "conv_transpose2d")
    assert known[:2] == net[1].bias[:2].tolist()
    assert all(math.isnan(value) for value in known[2:])
    mask = torch.ones_like(net[1].weight)
    mask[:3, 1] = 0  # second filter of the first group
    known = known_channels(net, X, {"1": {"weight": mask}}, "conv_transpose2d")
    assert [math.isnan(value) for value in known] == [True, False, True, True]


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (F.dropout, [0.0, math.nan]),
        (F.dropout2d, [0.0, math.nan]),
        (F.alpha_dropout, None),
        (lambda y, training: F.dropout(y, training=False), [0.0, 0.4]),
    ],
)
def test_dropout_of_a_constant(drop, expected):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return drop(F.relu(self.a(x)), training=True)

    net = randomise(Net())
    with torch.no_grad():
        net.a.bias.copy_(torch.tensor([-0.1, 0.4, 0.4, 0.4]))
    masks = {"a": {"weight": rows_off(net, "a", [0, 1])["a"]["weight"]}}
    names = {F.dropout: "dropout", F.dropout2d: "feature_dropout", F.alpha_dropout: "alpha_dropout"}
    known = known_channels(net, X, masks, names.get(drop, "dropout"))
    assert (known is None) == (expected is None)
    assert known is None or known[:2] == pytest.approx(expected, nan_ok=True)


# -- silence -------------------------------------------------------------------------------------


def test_silence_masks_the_norm_and_says_so():
    net = randomise(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1),
    ))  # fmt: skip
    only = {"0": {"weight": rows_off(net, "0", [1, 2])["0"]["weight"]}}
    expected = outputs_of(masked(net, rows_off(net, "0", [1, 2], "1")), X)
    assert not torch.allclose(expected[0], outputs_of(masked(net, only), X)[0])
    speedup = ModelSpeedup(net, X, only)
    assert_same_outputs(expected, outputs_of(speedup.speedup_model(), X))
    notes = " ".join(speedup.report().notes)
    for name in ("0.bias", "1.weight", "1.bias"):
        assert f"{name}: 2 values zeroed" in notes
    assert speedup.report().difference < 1e-9
    assert (net[0].out_channels, net[3].in_channels) == (2, 2)


def test_silence_leaves_half_masked_sets_alone():
    """One summand of two is masked: its bias and norm are not zeroed, they count."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = (nn.Conv2d(i, o, 3) for i, o in ((3, 4), (3, 4), (4, 2)))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.head(F.relu(self.norm(self.a(x)) + self.b(x)))

    net = randomise(Sum())
    only = {"a": {"weight": rows_off(net, "a", [1, 2])["a"]["weight"]}}
    speedup = shrink(net, X, only, constants="silence", smaller=False)
    assert not any("zeroed" in note for note in speedup.report().notes)


def test_silence_leaves_outputs_alone():
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3)))
    shrink(net, X, {"0": {"weight": rows_off(net, "0", [1])["0"]["weight"]}}, smaller=False)


@pytest.mark.parametrize("name", ["conv", "all.0"])
@pytest.mark.parametrize("targets", [["weight"], ["weight", "bias"]])
def test_a_layer_under_two_names_is_cut(name, targets):
    """Masks by hand, under either name; what follows is zeroed under the first one alone."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.all = nn.Sequential(self.conv, self.bn, nn.ReLU())
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.head(self.all(x))

    net = randomise(Twice())
    everything = rows_off(net, "conv", [1, 4, 6], "bn")
    expected = outputs_of(masked(net, everything), X)
    speedup = ModelSpeedup(net, X, {name: {t: everything["conv"][t] for t in targets}})
    assert_same_outputs(expected, outputs_of(speedup.speedup_model(), X))
    assert (net.conv.out_channels, net.bn.num_features, net.head.in_channels) == (5, 5, 5)
    assert net.all[0] is net.conv
    assert not any(note.startswith("all.") for note in speedup.report().notes)


@pytest.mark.parametrize("dim", [0, 2, 3])
@pytest.mark.parametrize("size", [7, 8])
def test_concatenated_in_space_or_batch(dim, size):
    """What is zero in both parts is zero in the whole, at any height: 8 channels, a height of 8."""

    def joined(s, x):
        return torch.cat([s.a(x), s.b(x)], dim)

    net = middle(joined, a=conv(8, 8), b=conv(8, 8))
    shrink(
        net, randn(2, 3, size, size), {**rows_off(net, "a", [1, 4]), **rows_off(net, "b", [1, 4])}
    )
    assert shapes(net, "a", "b", "head") == [(6, 8), (6, 8), (4, 6)]


def test_concatenated_in_space_with_one_part_alive():
    net = middle(lambda s, x: torch.cat([s.a(x), s.b(x)], 2), a=conv(8, 8), b=conv(8, 8))
    shrink(net, randn(2, 3, 8, 8), rows_off(net, "a", [1, 4]), smaller=False)
