"""Widths that a forward reads from attributes of its modules: they follow what is kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import assert_same_outputs, outputs_of, randn, rows_off, shrink, zeroing_masks
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.artefact import load_compact, save_compact
from nni_gconv.artefact.plan import plan_of, rebuild
from nni_gconv.errors import CheckpointError
from nni_gconv.graph import trace


def partial(s, x):
    """Convolve a part of the channels, as a FasterNet does."""
    a, b = torch.split(x, [s.dim, s.rest], 1)
    return torch.cat([s.part(a), b], 1)


def part_net():
    return middle(partial, part=conv(3, 3), dim=3, rest=5)


def test_parts_lose_what_each_loses():
    net = part_net()
    shrink(net, X, rows_off(net, "stem", [0, 1, 4]))
    assert (net.dim, net.rest) == (1, 4)
    assert shapes(net, "stem", "part") == [(5, 3), (3, 1)]


def test_a_list_and_what_is_left_of_it():
    def forward(s, x):
        q, k, v = s.mix(x).split(s.widths, dim=1)
        return torch.cat([q * torch.sigmoid(k), v], 1)

    net = middle(forward, width=6, mix=conv(8, 9, 1), widths=[3, 3, 3])
    shrink(net, X, rows_off(net, "mix", [0, 3, 7, 8]))
    assert net.widths == [2, 2, 1]
    assert shapes(net, "mix", "head") == [(5, 8), (4, 3)]


def test_a_tuple_stays_one():
    def forward(s, x):
        return torch.cat(list(x.split(s.widths, 1))[::-1], 1)

    net = middle(forward, widths=(6, 2))
    shrink(net, X, rows_off(net, "stem", [0, 7]))
    assert net.widths == (5, 1)


def test_a_difference_sets_the_other_attribute():
    def forward(s, x):
        a, b = x.split([s.dim, s.whole - s.dim], 1)
        return torch.cat([s.part(a), b], 1).reshape(x.shape[0], s.whole, *x.shape[2:])

    net = middle(forward, part=conv(3, 3), dim=3, whole=8)
    masks = {**rows_off(net, "stem", [0, 4]), **rows_off(net, "part", [1])}
    shrink(net, X, masks)
    assert (net.dim, net.whole) == (2, 6)
    assert shapes(net, "stem", "part") == [(6, 3), (2, 2)]


def test_half_of_an_attribute():
    def forward(s, x):
        a, b = x.split(s.wide // 2, 1)
        return torch.cat([F.relu(s.part(a)), b], 1)

    net = middle(forward, part=conv(4, 4), wide=8)
    shrink(net, X, rows_off(net, "stem", [0, 1, 5, 6]))
    assert net.wide == 4


def test_one_attribute_counts_all_parts():
    """As a Res2Net does: parts lose as many, what one loses more stays as zeros."""

    def forward(s, x):
        parts = x.split(s.each, 1)
        a = F.relu(s.one(parts[0]))
        b = F.relu(s.two(a + parts[1]))
        return torch.cat([a, b, parts[2], parts[3]], 1)

    net = middle(forward, one=conv(2, 2), two=conv(2, 2), each=2)
    masks = [
        rows_off(net, "stem", [0, 2, 4, 6]),
        rows_off(net, "one", [0]),
        rows_off(net, "two", [1]),
    ]
    speedup = shrink(net, X, {k: v for m in masks for k, v in m.items()})
    assert net.each == 1
    assert shapes(net, "stem", "one", "two", "head") == [(4, 3), (1, 1), (1, 1), (4, 4)]
    net = middle(forward, one=conv(2, 2), two=conv(2, 2), each=2)
    speedup = shrink(net, X, rows_off(net, "stem", [4]), smaller=False)
    assert net.each == 2
    assert "parts that each counts at" in " ".join(speedup.report().notes)


@pytest.mark.parametrize("negative", [False, True])
def test_slices(negative):
    def forward(s, x):
        begin = -s.last if negative else s.first
        return torch.cat([s.part(x[:, :begin]), x[:, begin:]], dim=1)

    net = middle(forward, part=conv(3, 3), first=3, last=5)
    shrink(net, X, rows_off(net, "stem", [1, 3, 4, 7]))
    assert (net.first, net.last) == ((3, 2) if negative else (2, 5))
    assert shapes(net, "part", "head") == [(3, 2), (4, 5)]


def test_half_of_the_shape_is_sliced():
    def forward(s, x):
        half = x.shape[1] // 2
        return torch.cat([s.part(x[:, :half]), x[:, half:]], 1)

    net = middle(forward, part=conv(4, 4))
    shrink(net, X, rows_off(net, "stem", [1, 3, 4, 7]))
    assert shapes(net, "stem", "part", "head") == [(4, 3), (4, 2), (4, 6)]
    net = middle(forward, part=conv(4, 4))
    shrink(net, X, rows_off(net, "stem", [1, 3]), smaller=False)


def test_in_front_of_a_number_in_the_code_all_stays():
    def forward(s, x):
        return torch.cat([s.part(x[:, :3]), x[:, 3:]], 1)

    net = middle(forward, part=conv(3, 3))
    shrink(net, X, rows_off(net, "stem", [1, 4, 5]))
    assert shapes(net, "stem", "part") == [(6, 3), (3, 3)]
    assert "a part of the channels taken at" in reasons(net, X)["stem"]


def test_a_literal_part_stays_beside_one_of_an_attribute():
    def forward(s, x):
        gate, value = x.split([2, s.dim], 1)
        return value * gate[:, :1] * gate[:, 1:]

    net = middle(forward, width=6, dim=6)
    shrink(net, X, rows_off(net, "stem", [4, 5]))
    assert (net.dim, net.stem.out_channels) == (4, 6)


class Attention(nn.Module):
    """Self-attention over space whose heads are counted by attributes."""

    def __init__(self, dim, heads, each):
        super().__init__()
        self.heads, self.each, self.scale = heads, each, each**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * heads * each), nn.Linear(heads * each, dim)

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(n, h * w, 3, self.heads, self.each).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).reshape(n, h * w, self.heads * self.each)
        return x + self.proj(mixed).transpose(1, 2).reshape(n, c, h, w)


def test_heads_become_narrower():
    net = middle(lambda s, x: s.attention(x), attention=Attention(8, 2, 4))
    shrink(net, X, zeroing_masks(net, X))
    attention = net.attention
    assert (attention.heads, attention.each) == (2, 2)
    assert shapes(net, "attention.qkv", "attention.proj") == [(12, 5), (5, 4)]


class Fused(Attention):
    """The same as one operator, which scales by the width that a head has now."""

    scale_given = False

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(n, h * w, 3, self.heads, self.each).permute(2, 0, 3, 1, 4)
        options = {"scale": self.scale} if self.scale_given else {}
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0), **options)
        mixed = mixed.transpose(1, 2).reshape(n, h * w, -1)
        return x + self.proj(mixed).transpose(1, 2).reshape(n, c, h, w)


def test_whole_heads_go_where_their_width_scales():
    net = middle(lambda s, x: s.attention(x), attention=Fused(8, 4, 3))
    shrink(net, X, zeroing_masks(net, X))
    attention = net.attention
    assert (attention.heads, attention.each) == (2, 3)
    assert shapes(net, "attention.qkv", "attention.proj") == [(18, 5), (5, 6)]


def test_a_single_head_keeps_its_width():
    net = middle(lambda s, x: s.attention(x), attention=Fused(8, 1, 6))
    assert "scaled by the width of a head" in reasons(net, X)["attention.qkv"]
    shrink(net, X, zeroing_masks(net, X))
    assert shapes(net, "attention.qkv", "attention.proj") == [(18, 5), (5, 6)]


def test_a_scale_that_is_given_lets_heads_become_narrower():
    net = middle(lambda s, x: s.attention(x), attention=Fused(8, 2, 4))
    net.attention.scale_given = True
    shrink(net, X, zeroing_masks(net, X))
    assert (net.attention.heads, net.attention.each) == (2, 2)


def test_values_alone_become_narrower():
    def forward(s, x):
        n, _, h, w = x.shape
        q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (s.q, s.k, s.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, h, w)

    net = middle(forward, width=6, q=conv(8, 4, 1), k=conv(8, 4, 1), v=conv(8, 6, 1))
    shrink(net, X, rows_off(net, "v", [0, 2]))
    assert shapes(net, "q", "v", "head") == [(4, 8), (4, 8), (4, 4)]
    assert "scaled by the width of a head" in reasons(net, X)["q"]


def test_an_attribute_that_is_more_than_a_width_stays():
    def forward(s, x):
        a, b = x.split([s.dim, s.rest], 1)
        return torch.cat([s.part(a) / s.dim, b], 1)

    net = middle(forward, part=conv(3, 3), dim=3, rest=5)
    assert "dim is more than a width to the forward" in reasons(net, X)["stem"]
    shrink(net, X, rows_off(net, "stem", [0, 4]))
    assert (net.dim, net.rest) == (3, 4)


@pytest.mark.parametrize(
    "use",
    [
        lambda s, x: x * s.dim**-0.5,
        lambda s, x: x.div(float(s.dim)),
        lambda s, x: x * torch.full((1,), s.dim, dtype=x.dtype),
        lambda s, x: x * (s.dim * 0.5),
        lambda s, x: x * (1 / s.dim),
    ],
)
def test_other_uses_are_seen(use):
    net = middle(lambda s, x: use(s, torch.cat(x.split([s.dim, s.rest], 1), 1)), dim=3, rest=5)
    masks = rows_off(net, "stem", [0, 4])
    shrink(net, X, masks)
    assert (net.dim, net.rest) == (3, 4)


def test_a_block_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.dim, self.rest, self.part = 3, 5, conv(3, 3)

        def forward(self, x):
            return partial(self, x)

    net = middle(lambda s, x: s.block(s.between(s.block(x))), block=Twice(), between=conv(8, 8))
    masks = {**rows_off(net, "stem", [0, 3]), **rows_off(net, "between", [1, 4])}
    shrink(net, X, {**masks, **rows_off(net, "block.part", [0])})
    # Of the part itself no channel can go: 0 goes in the one call and 1 in the other.
    assert (net.block.dim, net.block.rest) == (3, 4)
    assert shapes(net, "stem", "between", "block.part") == [(7, 3), (7, 6), (2, 3)]


def test_a_use_that_nobody_sees_is_found_by_the_verification():
    def forward(s, x):
        return torch.cat(x.split([s.dim, s.rest], 1), 1) * (0.5 * s.dim)  # a float takes integers

    net = middle(forward, dim=3, rest=5)
    speedup = shrink(net, X, rows_off(net, "stem", [0, 4]), smaller=False, verify=True)
    assert (net.dim, net.rest) == (3, 5)
    assert "the forward needs more than its width" in " ".join(speedup.report().notes)


def test_no_part_becomes_empty():
    net = part_net()
    shrink(net, X, rows_off(net, "stem", [3, 4, 5, 6, 7]))
    assert (net.dim, net.rest) == (3, 1)


def test_the_trace_leaves_attributes_alone():
    net = middle(partial, part=conv(3, 3), dim=3, rest=5)
    net.widths = [3, 5]
    before = net.widths
    trace(net, X)
    assert net.widths is before
    assert type(net.dim) is int
    assert all(type(n) is int for n in before)


# -- files -----------------------------------------------------------------------------------------


def cut_net():
    net = part_net()
    net.widths = (3, 5)
    masks = rows_off(net, "stem", [0, 1, 4])
    return ModelSpeedup(net, X, masks).speedup_model()


def test_saved_and_loaded(tmp_path):
    small = cut_net()
    save_compact(small, tmp_path / "small.safetensors")
    loaded = load_compact(tmp_path / "small.safetensors", part_net)
    assert (loaded.dim, loaded.rest) == (1, 4)
    assert_same_outputs(outputs_of(small, X), outputs_of(loaded, X), 0)
    again = ModelSpeedup(loaded, X, rows_off(loaded, "stem", [4])).speedup_model()
    assert (again.dim, again.rest) == (1, 3)
    assert plan_of(again)["widths"] == {"": {"dim": 1, "rest": 3}}
    copied = copy.deepcopy(again)
    assert_same_outputs(outputs_of(again, X), outputs_of(copied, X), 0)


@pytest.mark.parametrize(
    "held", [{"dim": 0}, {"dim": 4}, {"dim": "3"}, {"dim": True}, {"dim": [3]}, {"training": 1},
             {"other": 1}, {"forward": 2}, {"_parameters": 1}]
)  # fmt: skip
def test_a_damaged_plan_sets_no_other_attribute(held):
    plan = plan_of(cut_net())
    plan["widths"] = {"": held}
    with pytest.raises(CheckpointError, match="cannot be"):
        rebuild(part_net(), plan)


def test_exported_and_trained(tmp_path):
    small = cut_net()
    program = torch.export.export(small, (X,))
    assert_same_outputs(outputs_of(small, X), [program.module()(X)])
    small.train()(randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
