"""Channels cut into parts that are chunks, views or groups: shuffles, halves, gates."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import (
    assert_same_outputs,
    filter_masks,
    line_of,
    masked,
    outputs_of,
    randn,
    randomise,
    rows_off,
    shrink,
    zeroing_masks,
)
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.graph import Coupling

HERE = "test_parts.py"


def test_unequal_split_is_pinned():
    def forward(s, x):
        c, d = s.a(x).split([3, 5], dim=1)
        return torch.cat([c, d[:, :2]], 1)

    net = middle(forward, width=5, a=conv(8, 8))
    found = reasons(net, X)
    assert "a part of the channels taken" in found["a"]
    assert HERE in found["a"]
    shrink(net, X, rows_off(net, "a", [0]), smaller=False)


def test_halves_lose_as_many():
    """Two of the first half and one of the second are masked: one of the three stays as zeros."""

    def forward(s, x):
        a, b = s.a(x).chunk(2, dim=1)
        return torch.cat([F.relu(s.b(a)), b], 1)

    net = middle(forward, width=8, a=conv(8, 8), b=conv(4, 4))
    assert reasons(net, X)["a"] is None
    speedup = shrink(net, X, rows_off(net, "a", [1, 3, 6]))
    assert shapes(net, "a", "b", "head") == [(6, 8), (4, 3), (4, 7)]
    assert "equal parts of chunk" in " ".join(speedup.report().notes)
    found = Coupling.trace(middle(forward, a=conv(8, 8), b=conv(4, 4)), X)
    assert [s.parts for s in found.sets if s.members[0].module == "stem"] == [None]


def test_product_of_halves_goes_together():
    def forward(s, x):
        a, b = s.a(x).chunk(2, dim=1)
        return a * torch.sigmoid(b)

    net = middle(forward, width=4, a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [1, 5]))
    assert shapes(net, "a", "head") == [(6, 8), (4, 3)]


class CrossStage(nn.Module):
    """Half of the channels goes through residual blocks, and all that came up is concatenated."""

    def __init__(self, width, blocks=2):
        super().__init__()
        half = width // 2
        self.split, self.join = conv(width, width, 1), conv((2 + blocks) * half, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(half, half), nn.SiLU(), conv(half, half)) for _ in range(blocks)
        )

    def forward(self, x):
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.join(torch.cat(parts, 1))


def test_halves_that_go_different_ways():
    net = middle(lambda s, x: s.block(x), block=CrossStage(8))
    inner = ["block.blocks.0.2", "block.blocks.1.2"]
    found = {s.name: s for s in Coupling.trace(net, X).sets}
    assert (found["block.split (+2)"].size, found["block.split (+2)"].reason) == (4, None)
    # Channel 1 of the part that is only concatenated, channel 2 of the other.
    masks = {**rows_off(net, "block.split", [1, 6]), **rows_off(net, inner[0], [2], inner[1])}
    shrink(net, X, masks)
    assert shapes(net, "block.split", *inner) == [(6, 8), (3, 4), (3, 4)]
    assert net.block.join.in_channels == 12
    net = middle(lambda s, x: s.block(x), block=CrossStage(8))
    speedup = shrink(net, X, rows_off(net, "block.split", [1]), smaller=False)
    assert "equal parts of chunk" in " ".join(speedup.report().notes)


def test_concatenation_read_in_groups():
    net = middle(
        lambda s, x: s.g(torch.cat([s.a(x), s.b(x)], 1)), width=12,
        a=conv(8, 8), b=conv(8, 4), g=conv(12, 12, groups=2),
    )  # fmt: skip
    sets = {(s.name, s.size): s.parts for s in Coupling.trace(net, X).sets if s.reason is None}
    # The first group reads six of a; a unit is one of these and one that the second group reads.
    assert set(sets) == {("stem", 8), ("a (+1)", 4), ("a", 4), ("g", 12)}
    assert sets["a", 4].tolist() == [0, 0, 1, 1]
    shrink(net, X, {**rows_off(net, "a", [0, 4]), **rows_off(net, "b", [1, 3])})
    assert shapes(net, "a", "b") == [(6, 8), (2, 8)]
    assert (net.g.in_channels, net.g.groups) == (8, 2)


def test_half_beside_an_output_stays():
    net = randomise(HalfAnOutput())
    assert "would not stay equally wide" in reasons(net, X)["a"]
    shrink(net, X, rows_off(net, "a", [5, 6]), smaller=False)


class HalfAnOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(4, 3)

    def forward(self, x):
        first, second = self.a(x).chunk(2, 1)
        return first, self.b(second)


def test_split_by_half_the_width():
    def forward(s, x):
        y = s.a(x)
        a, b = y.split(y.shape[1] // 2, dim=1)
        c, d = y.split([y.shape[1] // 2, y.shape[1] // 2], dim=1)
        return torch.cat([F.relu(a), b + c, d], 1)

    net = middle(forward, width=12, a=conv(8, 8))
    assert reasons(net, X)["a"] is None
    shrink(net, X, rows_off(net, "a", [1, 5]))
    assert shapes(net, "a", "head") == [(6, 8), (4, 9)]


def test_split_by_a_width_is_pinned():
    """``split(4)`` of six channels is four and two: nothing fails, and yet it would be wrong."""

    def forward(s, x):
        a, b = s.a(x).split(4, dim=1)
        return torch.cat([F.relu(a), b], 1)

    net = middle(forward, width=8, a=conv(8, 8))
    speedup = shrink(net, X, rows_off(net, "a", [1, 6]), smaller=False)
    assert HERE in " ".join(speedup.report().notes)
    net = middle(lambda s, x: torch.cat(s.a(x).chunk(3, 1), 1), width=9, a=conv(8, 9))
    shrink(net, X, rows_off(net, "a", [0, 4, 8]))
    assert shapes(net, "a", "head") == [(6, 8), (4, 6)]


def test_split_by_a_width_of_unknown_origin():
    """The number in the code cannot be told from a size any more; the small model shows it."""

    def forward(s, x):
        a, b = s.a(x).split(4, dim=int(x.shape[0]) - 1)
        return torch.cat([F.relu(a), b], 1)

    net = middle(forward, a=conv(8, 8))
    assert reasons(net, X)["a"] is None
    speedup = shrink(net, X, rows_off(net, "a", [1, 6]), smaller=False)
    assert "a width is written in the forward" in " ".join(speedup.report().notes)


def test_part_of_repeated_channels_is_pinned():
    net = middle(lambda s, x: x.repeat(1, 2, 1, 1)[:, :8])
    assert "a part of the channels taken" in reasons(net, X)["stem"]
    shrink(net, X, rows_off(net, "stem", [1, 2]), smaller=False)
    net = middle(lambda s, x: x.repeat(1, 2, 1, 1), width=16)
    shrink(net, X, rows_off(net, "stem", [1, 2]))
    assert net.head.in_channels == 12


def by_view(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


SHUFFLES = {
    "view": by_view,
    "free view": lambda x: x.reshape(len(x), 2, -1, 8, 8).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "batch": lambda x: x.view(2, 2, -1, 8 * 8).swapaxes(1, 2).reshape(x.shape),
    "back": lambda x: x.view(2, x.shape[1] // 2, 2, 8, 8).transpose(1, 2).reshape(x.shape),
    "function": lambda x: F.channel_shuffle(x, 2),
    "module": nn.ChannelShuffle(2),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_channel_shuffle(name):
    """A channel goes with the one at its place in the other half."""
    shuffle = SHUFFLES[name]
    net = middle(lambda s, x: s.a(shuffle(x)), a=conv(8, 8))
    (stem, *_) = Coupling.trace(net, X).sets
    assert (stem.size, stem.reason) == (4, None)
    pairs = [[2, 3]] if name == "back" else [[1, 5]]
    half_a_pair = [4, 6] if name == "back" else [2, 3]
    masks = rows_off(net, "stem", [*pairs[0], *half_a_pair])
    shrink(net, X, {**masks, **rows_off(net, "a", [0])})
    assert shapes(net, "stem", "a", "head") == [(6, 3), (7, 6), (4, 7)]


class LiteralShuffle(nn.Module):
    def forward(self, x):
        x = x.view(x.shape[0], 2, 4, 8, 8)
        return x.transpose(1, 2).reshape(x.shape[0], -1, 8, 8)


class LiteralFreeShuffle(nn.Module):
    """Nothing fails with six channels: they are dealt into four and two, which is wrong."""

    def forward(self, x):
        x = x.view(x.shape[0], -1, 2, 8, 8)
        return x.transpose(1, 2).reshape(x.shape[0], -1, 8, 8)


@pytest.mark.parametrize("kind", [LiteralShuffle, nn.ChannelShuffle])
def test_shuffle_that_cannot_shrink(kind):
    shuffle = kind(8) if kind is nn.ChannelShuffle else kind()
    net = middle(lambda s, x: s.a(s.shuffle(x)), a=conv(8, 8), shuffle=shuffle)
    speedup = shrink(net, X, rows_off(net, "stem", [1, 5]), smaller=False)
    if kind is LiteralShuffle:
        assert line_of(LiteralShuffle, "x.view(x.shape[0]") in " ".join(speedup.report().notes)
    else:
        assert "one channel in each group" in reasons(net, X)["stem"]


def test_shuffle_whose_width_is_literal_and_number_of_parts_is_free():
    """Two channels side by side are a part; what is taken for the width may be the parts."""
    net = middle(lambda s, x: s.a(s.shuffle(x)), a=conv(8, 8), shuffle=LiteralFreeShuffle())
    shrink(net, X, rows_off(net, "stem", [4, 5]))
    assert net.stem.out_channels == 6


class ShuffleUnit(nn.Module):
    """ShuffleNet: grouped 1x1, shuffle, depthwise, grouped 1x1, sum."""

    def __init__(self, width, inner, groups):
        super().__init__()
        self.groups = groups
        self.reduce, self.bn1 = conv(width, inner, 1, groups=groups), nn.BatchNorm2d(inner)
        self.depthwise, self.bn2 = conv(inner, inner, groups=inner), nn.BatchNorm2d(inner)
        self.expand, self.bn3 = conv(inner, width, 1, groups=groups), nn.BatchNorm2d(width)

    def forward(self, x):
        y = by_view(F.relu(self.bn1(self.reduce(x))), self.groups)
        y = self.bn3(self.expand(self.bn2(self.depthwise(y))))
        return F.relu(x + y)


@pytest.mark.parametrize(("groups", "inner"), [(2, 8), (2, 12), (4, 32), (3, 24)])
def test_shufflenet_unit(groups, inner):
    """Also where a place of the first grouping falls into two groups of the second (3, 24)."""
    width = 4 * groups
    net = randomise(nn.Sequential(
        conv(3, width), ShuffleUnit(width, inner, groups), ShuffleUnit(width, inner, groups),
        conv(width, 4),
    ))  # fmt: skip
    assert all(s.reason in (None, "an output of the model") for s in Coupling.trace(net, X).sets)
    speedup = shrink(net, X, zeroing_masks(net, X, share=0.5))
    assert not [note for note in speedup.report().notes if "stay" in note]
    assert net[0].out_channels <= width - groups
    for unit in (net[1], net[2]):
        assert unit.reduce.out_channels < inner
        assert (unit.depthwise.groups, unit.reduce.groups) == (unit.reduce.out_channels, groups)


def test_shufflenet_unit_with_foreign_masks():
    net = randomise(nn.Sequential(conv(3, 8), ShuffleUnit(8, 12, 2), conv(8, 4)))
    expected = outputs_of(masked(net, masks := filter_masks(net, share=0.6)), X)
    assert_same_outputs(
        expected, outputs_of(ModelSpeedup(net, X, masks, constants="fold").speedup_model(), X)
    )
    net = randomise(nn.Sequential(conv(3, 8), ShuffleUnit(8, 12, 2), conv(8, 4)))
    # Places 1 and 4 of both halves of the shuffle are in different groups behind it; 2 is not
    # balanced.
    masks = {
        **rows_off(net, "1.reduce", [1, 7, 2, 8, 4, 10], "1.bn1"),
        **rows_off(net, "1.depthwise", [2, 3, 4, 5, 8, 9], "1.bn2"),
    }
    speedup = shrink(net, X, masks)
    assert net[1].depthwise.groups == 8
    assert "channels stay so that groups are equally wide" in " ".join(speedup.report().notes)


def test_split_attention():
    """Parts of a split are summed with weights that a softmax over the parts gives."""

    def forward(s, x):
        parts = s.a(x).view(len(x), 2, -1, 8, 8)
        gate = s.up(F.relu(s.down(parts.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(len(x), 2, -1, 1, 1).softmax(1)
        return (parts * gate).sum(1)

    net = middle(forward, a=conv(8, 16), down=conv(8, 4, 1), up=conv(4, 16, 1))
    masks = {**rows_off(net, "a", [1, 9, 6, 14], "up"), **rows_off(net, "down", [2])}
    shrink(net, X, masks)
    assert shapes(net, "a", "down", "up", "head") == [(12, 8), (3, 6), (12, 3), (4, 6)]


def test_heads_that_are_a_share_of_the_stream():
    """CoaT: heads are as wide as the stream over their number, so both lose channels together."""

    def forward(s, x):
        b, c, h, w = x.shape
        q, k, v = s.qkv(x).reshape(b, 3, 2, c // 2, h * w).unbind(1)
        y = k.softmax(-1) @ v.transpose(-1, -2)
        return x + s.proj((y.transpose(-1, -2) @ q).reshape(b, c, h, w))

    net = middle(forward, qkv=conv(8, 24, 1), proj=conv(8, 8, 1))
    assert reasons(net, X)["qkv"] is None and reasons(net, X)["stem"] is None
    masks = zeroing_masks(net, X, share=0.5)
    shrink(net, X, masks, verify=True)
    assert shapes(net, "stem", "qkv", "proj") == [(4, 3), (12, 4), (4, 4)]


def test_a_token_beside_the_stream_goes_with_it():
    """A parameter that stands among the pixels of each channel is masked with the channel."""

    def forward(s, x):
        tokens = torch.cat([s.token.expand(len(x), -1, -1), x.flatten(2)], 2)
        return s.a((tokens - tokens.sigmoid() * tokens)[:, :, 1:].unflatten(2, (8, 8)))

    net = middle(forward, a=conv(8, 8))
    net.token = nn.Parameter(randn(1, 8, 1))
    assert reasons(net, X)["stem"] is None
    shrink(net, X, zeroing_masks(net, X, share=0.5), verify=True)
    assert shapes(net, "stem", "a") == [(4, 3), (4, 4)] and net.token.shape == (1, 4, 1)


def test_largest_of_several_filters():
    """Maxout: three filters side by side make a channel."""
    net = middle(lambda s, x: s.a(x).view(2, -1, 3, 8, 8).amax(2), a=conv(8, 24))
    shrink(net, X, rows_off(net, "a", [3, 4, 5, 9, 21, 22, 23]))
    assert shapes(net, "a", "head") == [(18, 8), (4, 6)]


def test_pixel_shuffle_by_hand():
    def forward(s, x):
        n, c, h, w = (y := s.a(x)).shape
        y = y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(n, c // 4, 2 * h, 2 * w)

    net = middle(forward, a=conv(8, 32))
    shrink(net, X, rows_off(net, "a", [0, 1, 2, 3, 8, 9]))
    assert shapes(net, "a", "head") == [(28, 8), (4, 7)]


def test_groups_in_the_batch():
    """Channels folded into the batch for a convolution that all groups share."""
    net = middle(lambda s, x: s.a(x.view(-1, x.shape[1] // 2, 8, 8)).view(x.shape), a=conv(4, 4))
    shrink(net, X, rows_off(net, "stem", [1, 5]), smaller=False)  # a's rows are where x's were
    net = middle(lambda s, x: s.a(x.view(-1, x.shape[1] // 2, 8, 8)).view(x.shape), a=conv(4, 4))
    shrink(net, X, {**rows_off(net, "stem", [1, 5]), **rows_off(net, "a", [2])})
    net = middle(lambda s, x: s.act(x.view(-1, x.shape[1] // 2, 8, 8)).view(2, -1, 8, 8),
                 act=nn.PReLU(4))  # fmt: skip
    shrink(net, X, rows_off(net, "stem", [1, 5]))
    assert (net.head.in_channels, net.act.num_parameters) == (6, 3)


def test_gated_linear_unit():
    net = middle(lambda s, x: F.glu(s.a(x), dim=1), a=conv(8, 16))
    # Row 3 is gated by row 11, which counts for nothing without it; 12 without 4 gates half of it.
    shrink(net, X, rows_off(net, "a", [1, 9, 3, 12]))
    assert shapes(net, "a", "head") == [(12, 8), (4, 6)]
    net = randomise(nn.Sequential(nn.Linear(5, 8), nn.GLU(), nn.Linear(4, 2)))
    shrink(net, randn(3, 5), rows_off(net, "0", [0, 4]))
    assert net[2].in_features == 3
