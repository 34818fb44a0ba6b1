"""One small network per pattern: what goes, what stays and why, and the same numbers always."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import line_of, randn, randomise, rows_off, shrink
from torch import nn

from nni_gconv.graph import Coupling

# -- sums, concatenation, groups ------------------------------------------------------------------


def test_residual_goes_together():
    net = middle(lambda s, x: x + s.b(F.relu(s.a(x))), a=conv(8, 6), b=conv(6, 8))
    shrink(net, X, {**rows_off(net, "stem", [1, 2], "b"), **rows_off(net, "a", [0])})
    assert shapes(net, "stem", "a", "b", "head") == [(6, 3), (5, 6), (6, 5), (4, 6)]


def test_residual_half_masked_stays_as_zeros():
    net = middle(lambda s, x: x + s.b(x), b=conv(8, 8))
    speedup = shrink(net, X, rows_off(net, "stem", [1, 2]), smaller=False)
    assert "2 masked channels stay as zeros" in " ".join(speedup.report().notes)


def test_concatenation():
    net = middle(lambda s, x: torch.cat([x, s.a(x), x], 1), width=21, a=conv(8, 5))
    shrink(net, X, {**rows_off(net, "stem", [0, 7]), **rows_off(net, "a", [1, 3])})
    assert shapes(net, "stem", "a", "head") == [(6, 3), (3, 6), (4, 15)]


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise(multiplier):
    wide = 8 * multiplier
    net = middle(
        lambda s, x: F.relu(s.bn(s.dw(x))),
        width=wide,
        dw=conv(8, wide, groups=8),
        bn=nn.BatchNorm2d(wide),
    )
    rows = [r for c in (2, 5) for r in range(c * multiplier, (c + 1) * multiplier)]
    shrink(net, X, {**rows_off(net, "stem", [2, 5]), **rows_off(net, "dw", rows, "bn")})
    assert (net.dw.groups, net.dw.in_channels, net.dw.out_channels) == (6, 6, 6 * multiplier)


def test_depthwise_down_to_one_channel_and_again():
    net = middle(lambda s, x: s.dw(x), dw=conv(8, 8, groups=8))
    shrink(net, X, rows_off(net, "stem", list(range(7)), "dw"))
    assert (net.dw.groups, net.head.in_channels) == (1, 1)
    net = middle(lambda s, x: s.dw(x), dw=conv(8, 8, groups=8))
    for _ in range(2):
        shrink(net, X, rows_off(net, "stem", [0, 2], "dw"))
    assert (net.dw.groups, net.head.in_channels) == (4, 4)


def test_groups_stay_equally_wide():
    net = middle(lambda s, x: s.g(x), width=12, g=conv(8, 12, groups=2))
    # Inputs: two of the first group, one of the second. Outputs: one and three.
    masks = {**rows_off(net, "stem", [0, 1, 6]), **rows_off(net, "g", [2, 6, 7, 8])}
    speedup = shrink(net, X, masks)
    assert (net.g.groups, net.g.in_channels, net.g.out_channels) == (2, 6, 10)
    assert net.g.weight.shape[1] == 3
    assert "groups are equally wide" in " ".join(speedup.report().notes)


def test_group_of_one_channel_left():
    net = middle(lambda s, x: s.g(x), width=8, g=conv(8, 8, groups=4))
    shrink(net, X, rows_off(net, "stem", [0, 3, 5, 6]))
    assert (net.g.groups, tuple(net.g.weight.shape[:2])) == (4, (8, 1))


def test_groups_that_overlap_end():
    """Two grouped layers on one stream ask for different balances: the search must end."""
    net = middle(lambda s, x: s.g(x) + s.h(x), g=conv(8, 8, groups=2), h=conv(8, 8, groups=4))
    masks = rows_off(net, "stem", [0, 1, 2, 4, 6])
    shrink(net, X, masks)
    assert net.stem.out_channels == 4


def test_squeeze_and_excite():
    def forward(s, x):
        gate = torch.sigmoid(s.up(F.relu(s.down(x.mean((2, 3), keepdim=True)))))
        return x * gate

    net = middle(forward, down=conv(8, 4, 1), up=conv(4, 8, 1))
    shrink(net, X, {**rows_off(net, "stem", [0, 3], "up"), **rows_off(net, "down", [1])})
    assert shapes(net, "stem", "down", "up") == [(6, 3), (3, 6), (6, 3)]


def gate_of_linear_layers(s, x):
    n, c = x.shape[:2]
    return x * torch.sigmoid(s.up(F.relu(s.down(x.mean((2, 3)))))).view(n, c, 1, 1)


def gate_of_a_pool(s, x):
    y = F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)
    return x * F.hardsigmoid(s.up(F.relu(s.down(y.flatten(1))))).view(*y.shape).expand_as(x)


def gate_in_place(s, x):
    y = s.up(F.relu(s.down(x.mean((2, 3))), inplace=True)).sigmoid_()
    return x.clone().mul_(y[:, :, None, None])


@pytest.mark.parametrize("forward", [gate_of_linear_layers, gate_of_a_pool, gate_in_place])
def test_gates_of_linear_layers(forward):
    net = middle(forward, down=nn.Linear(8, 4), up=nn.Linear(4, 8))
    shrink(net, X, {**rows_off(net, "stem", [0, 3], "up"), **rows_off(net, "down", [1])})
    assert shapes(net, "stem", "down", "up") == [(6, 3), (3, 6), (6, 3)]


class NeighbourGate(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        y = self.mix(x.mean((2, 3))[:, None])
        return x * torch.sigmoid(y).transpose(1, 2)[..., None]


class SpatialGate(nn.Module):
    """Behind an activation: where it can be negative, a channel that is zero may be the largest."""

    def __init__(self, act=torch.tanh):
        super().__init__()
        self.mix, self.act = conv(2, 1, 7), act

    def forward(self, x):
        x = self.act(x)
        y = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.mix(y))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        n, _, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).view(n, h * w, 3, 2, -1).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (h, w))


@pytest.mark.parametrize(
    ("kind", "pinned", "why", "text"),
    [
        (NeighbourGate, "stem", "channels mixed with space", "self.mix(x.mean"),
        (SpatialGate, "stem", "that may be negative", "torch.cat([x.mean"),
        (Attention, "gate.qkv", "scaled by the width of a head", "F.scaled"),
    ],
)
def test_gates_that_mix_channels_keep_their_width(kind, pinned, why, text):
    net = middle(lambda s, x: s.gate(x), gate=kind())
    found = reasons(net, X)[pinned]
    assert why in found
    assert line_of(kind, text) in found
    shrink(net, X, rows_off(net, pinned, [1]), smaller=False)
    if kind is Attention:  # what it reads is free
        shrink(net, X, rows_off(net, "stem", [1, 4]))
        assert net.gate.qkv.in_features == 6


def test_a_spatial_gate_behind_a_relu_is_cut():
    net = middle(lambda s, x: s.gate(x), gate=SpatialGate(F.relu))
    assert reasons(net, X)["stem"] is None
    shrink(net, X, rows_off(net, "stem", [1, 4, 5]))
    assert (net.stem.out_channels, net.gate.mix.in_channels) == (5, 2)


class Pyramid(nn.Module):
    """Two levels, joined from above, and one head for both whose outputs stand in one tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 12, stride=2)
        self.side_a, self.side_b = conv(8, 6, 1), conv(12, 6, 1)
        self.tower, self.norm = conv(6, 6), nn.GroupNorm(3, 6)
        self.boxes, self.classes = conv(6, 3 * 4), conv(6, 3 * 2)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        b = self.side_b(b)
        a = self.side_a(a) + F.interpolate(b, size=a.shape[-2:], mode="nearest")
        levels = [F.relu_(self.norm(self.tower(y))) for y in (a, b)]
        found = {"boxes": [], "classes": []}
        for y in levels:
            for name, rows in found.items():
                z = getattr(self, name)(y)
                n, _, h, w = z.shape
                rows.append(z.view(n, 3, -1, h, w).permute(0, 3, 4, 1, 2).reshape(n, h * w * 3, -1))
        return {name: torch.cat(rows, 1) for name, rows in found.items()}


def test_detection_head_over_two_levels():
    net = randomise(Pyramid())
    assert reasons(net, X)["boxes"] == reasons(net, X)["classes"] == "an output of the model"
    masks = {
        **rows_off(net, "a", [1]),
        **rows_off(net, "b", [0, 7]),
        **rows_off(net, "side_a", [4], "side_b"),
        **rows_off(net, "tower", [2, 3], "norm"),
    }
    shrink(net, X, masks)
    assert shapes(net, "a", "b", "side_a", "side_b") == [(7, 3), (10, 7), (5, 7), (5, 10)]
    assert shapes(net, "tower", "boxes", "classes") == [(4, 5), (12, 4), (6, 4)]
    assert net.norm.num_groups == 2


# -- option A ------------------------------------------------------------------------------------


def test_option_a_as_a_module():
    net = middle(
        lambda s, x: s.pad(x[:, :, ::2, ::2]) + s.a(x),
        width=16,
        pad=nn.ZeroPad3d((0, 0, 0, 0, 3, 5)),
        a=conv(8, 16, stride=2),
    )
    # Rows 0..2 and 11..15 of a meet padding, row 3 + i meets channel i of the stem.
    masks = {**rows_off(net, "stem", [1, 6]), **rows_off(net, "a", [0, 4, 9, 14, 15])}
    shrink(net, X, masks)
    assert net.pad.padding == (0, 0, 0, 0, 2, 3)
    assert shapes(net, "stem", "a", "head") == [(6, 3), (11, 6), (4, 11)]


class PadInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.head = conv(3, 8), conv(8, 16, stride=2), conv(16, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(y + self.a(x))


def test_option_a_in_the_forward_is_pinned_there():
    net = randomise(PadInForward())
    place = line_of(PadInForward, "F.pad(")
    assert place in reasons(net, X)["a"]
    masks = {**rows_off(net, "a", [0, 1, 5]), **rows_off(net, "stem", [1])}
    speedup = shrink(net, X, masks)
    # Channel 1 of the stem is row 5 of the sum; the padding's rows 0 and 1 have to stay.
    assert shapes(net, "stem", "a") == [(7, 3), (15, 7)]
    assert any("stay" in note and place in note for note in speedup.report().notes)


def test_shared_padding_module():
    """One module pads two sums: what only one of them could lose has to stay."""
    net = middle(
        lambda s, x: s.c(s.pad(x) + s.a(x)) + s.d(s.pad(x) + s.b(x)),
        pad=nn.ZeroPad3d((0, 0, 0, 0, 1, 1)),
        a=conv(8, 10),
        b=conv(8, 10),
        c=conv(10, 8),
        d=conv(10, 8),
    )
    sets = Coupling.trace(net, X).sets
    assert [s.size for s in sets if {m.module for m in s.members} == {"a", "b"}] == [2]
    shrink(net, X, rows_off(net, "a", [0]), smaller=False)
    assert net.pad.padding == (0, 0, 0, 0, 1, 1)
    shrink(net, X, rows_off(net, "a", [0], "b"))
    assert net.pad.padding == (0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("mode", ["circular", "replicate"])
def test_channels_padded_with_channels(mode):
    net = middle(lambda s, x: F.pad(x, (0, 0, 0, 0, 1, 1), mode=mode), width=10)
    shrink(net, X, rows_off(net, "stem", [0, 3]), smaller=False)


# -- sharing -------------------------------------------------------------------------------------


def test_module_called_twice():
    net = middle(
        lambda s, x: F.relu(s.bn(s.a(F.relu(s.bn(s.a(x)))))), a=conv(8, 8), bn=nn.BatchNorm2d(8)
    )
    shrink(net, X, rows_off(net, "stem", [2, 3], "a", "bn"))
    assert shapes(net, "stem", "a", "head") == [(6, 3), (6, 6), (4, 6)]


def test_one_module_with_two_names():
    a = conv(8, 8)
    net = middle(lambda s, x: s.first(x) + s.second(F.relu(x)), first=a, second=a, bn=nn.Identity())
    assert net.first is net.second
    shrink(net, X, rows_off(net, "first", [2, 3]))
    assert net.first is net.second
    assert shapes(net, "first", "head") == [(6, 8), (4, 6)]


def test_tied_parameters_stay_tied():
    net = middle(lambda s, x: s.a(x) * torch.sigmoid(s.b(x)), a=conv(8, 8), b=conv(8, 8))
    net.b.weight = net.a.weight
    masks = rows_off(net, "a", [1, 4])
    masks["b"] = rows_off(net, "b", [1, 4])["b"]
    shrink(net, X, masks)
    assert net.b.weight is net.a.weight
    assert net.b.bias is not net.a.bias
    assert shapes(net, "a", "head") == [(6, 8), (4, 6)]


def test_many_shared_modules_keep_their_own_tensors():
    """A tensor that is freed gives its address to the next; they must not be taken for tied."""
    shared = [conv(8, 8, bias=False) for _ in range(20)]

    def forward(s, x):
        for layer in (*s.one, *s.two):
            x = F.relu(layer(x))
        return x

    net = middle(forward, one=nn.ModuleList(shared), two=nn.ModuleList(shared))
    names = [f"one.{i}" for i in range(20)]
    shrink(net, X, rows_off(net, "stem", [1, 4], *names))
    assert len({id(m.weight) for m in net.one}) == 20


def test_embedding_tied_to_a_linear_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5, bias=False)
            self.table = nn.Embedding(5, 6)
            self.b.weight = self.table.weight

        def forward(self, x, index):
            return self.b(F.relu(self.a(x))), self.table(index)

    net = randomise(Tied())
    inputs = (randn(3, 4), torch.tensor([0, 4]))
    assert "embedding" in reasons(net, inputs)["a"]
    shrink(net, inputs, rows_off(net, "a", [0, 2]), smaller=False)


def test_flip_and_pixel_shuffle():
    net = middle(lambda s, x: x.flip(1))
    shrink(net, X, rows_off(net, "stem", [1]), smaller=False)
    net = middle(lambda s, x: F.pixel_shuffle(s.a(x), 2), a=conv(8, 32))
    # Four filters make one channel of a pixel: the first four go, half of the next does not.
    shrink(net, X, {**rows_off(net, "a", [0, 1, 2, 3, 4, 5]), **rows_off(net, "stem", [4])})
    assert shapes(net, "stem", "a", "head") == [(7, 3), (28, 7), (4, 7)]
    net = middle(lambda s, x: F.pixel_unshuffle(x, 2), width=32)
    shrink(net, X, rows_off(net, "stem", [3]))
    assert net.head.in_channels == 28


# -- inputs and outputs --------------------------------------------------------------------------


class ManyOutputs(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(6, 4)
        self.result = result

    def forward(self, x, *, y=None):
        a = F.relu(self.a(x if y is None else x + y))
        b = F.relu(self.b(a))
        return self.result(a, b, self.c(b))


@pytest.mark.parametrize(
    "result",
    [
        lambda a, b, c: {"out": c, "inner": a.mean(1)},
        lambda a, b, c: (c, {"inner": [a]}),
    ],
    ids=["reduced", "itself"],
)
def test_outputs_in_containers_and_inner_tensors(result):
    net = randomise(ManyOutputs(result))
    masks = {**rows_off(net, "a", [1, 2]), **rows_off(net, "b", [0, 3])}
    shrink(net, X, masks)
    assert shapes(net, "a", "b", "c") == [(8, 3), (4, 8), (4, 4)]
    assert reasons(net, X)["c"] == "an output of the model"


def test_keyword_inputs():
    net = randomise(ManyOutputs(lambda a, b, c: c))
    dummy = {"x": X, "y": randn(2, 3, 8, 8, seed=1)}
    masks = {**rows_off(net, "a", [1, 2]), **rows_off(net, "b", [0, 3])}
    shrink(net, dummy, masks)
    assert shapes(net, "a", "b", "c") == [(6, 3), (4, 6), (4, 4)]


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.words = conv(3, 8), nn.Linear(5, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x, words):
            y = self.image(x).mean((2, 3)) * torch.tanh(self.words(words))
            return self.head(y)

    net = randomise(Two())
    dummy = (X, randn(2, 5))
    shrink(net, dummy, rows_off(net, "image", [2, 7], "words"))
    assert shapes(net, "image", "words", "head") == [(6, 3), (6, 5), (2, 6)]


# -- what nobody reads, what is wholly masked ----------------------------------------------------


def test_dead_layer_may_be_masked():
    def forward(s, x):
        s.dead(x)
        return x

    net = middle(forward, dead=conv(8, 8))
    shrink(net, X, {**rows_off(net, "stem", [0]), **rows_off(net, "dead", [1, 2])})
    assert shapes(net, "stem", "dead") == [(7, 3), (6, 7)]


def test_layer_wholly_masked_keeps_one_channel():
    net = middle(lambda s, x: F.relu(s.a(x)), a=conv(8, 8))
    speedup = shrink(net, X, rows_off(net, "a", list(range(8))))
    assert net.a.out_channels == 1
    # Nothing reads the stem any more but a filter that stays as zeros.
    assert "one channel stays" in " ".join(speedup.report().notes)


def test_branch_wholly_masked():
    net = middle(
        lambda s, x: x + s.bn2(s.b(F.relu(s.bn1(s.a(x))))),
        a=conv(8, 16),
        bn1=nn.BatchNorm2d(16),
        b=conv(16, 8),
        bn2=nn.BatchNorm2d(8),
    )
    masks = rows_off(net, "b", list(range(8)), "bn2")
    shrink(net, X, masks)
    assert shapes(net, "stem", "a", "b") == [(8, 3), (1, 8), (8, 1)]


def test_columns_masked_make_channels_unread():
    net = middle(lambda s, x: F.relu(s.a(x)), a=conv(8, 8))
    column = torch.ones_like(net.head.weight)
    column[:, [1, 2]] = 0
    shrink(net, X, {"head": {"weight": column}})
    assert shapes(net, "a", "head") == [(6, 8), (4, 6)]
