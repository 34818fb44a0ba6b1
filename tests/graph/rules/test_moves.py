"""Operators that only move data, each by itself: what they move stays cut and equal."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import randn, rows_off, shrink
from torch import nn

#: Forward of 8 channels -> width behind it, and what is left of that of 5 channels.
MOVES = {
    "swapdims": (lambda x: x.swapdims(1, 3).swapdims(3, 1), 8, 5),
    "swapaxes": (lambda x: x.swapaxes(1, 2).tanh().swapaxes(2, 1), 8, 5),
    "moveaxis": (lambda x: x.moveaxis(1, -1).moveaxis(-1, 1), 8, 5),
    "movedim": (lambda x: x.movedim((1, 2), (2, 1)).movedim(2, 1), 8, 5),
    "tile": (lambda x: x.tile(1, 2, 1, 1), 16, 10),
    "repeat": (lambda x: x.repeat(1, 3, 1, 1), 24, 15),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, dim=1), 16, 10),
    "broadcast_to": (lambda x: x.mean((2, 3), keepdim=True).broadcast_to(*x.shape), 8, 5),
    "expand": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8), 8, 5),
    "roll": (lambda x: x.roll((1, 2), (2, 3)), 8, 5),
    "flip": (lambda x: x.flip(3), 8, 5),
    "unbind": (lambda x: torch.stack(x.unbind(3)[::-1], 3), 8, 5),
    "narrow": (lambda x: x.narrow(2, 1, 4), 8, 5),
    "tensor_split": (lambda x: torch.cat(x.tensor_split(3, dim=2)[::-1], 2), 8, 5),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move(name):
    move, width, left = MOVES[name]
    net = middle(lambda s, x: move(x), width=width)
    assert reasons(net, X)["stem"] is None
    shrink(net, X, rows_off(net, "stem", [0, 3, 6]))
    assert shapes(net, "stem", "head") == [(5, 3), (4, left)]


#: Such that mix channels with what does not follow them, and why they keep their width.
HELD = {
    "roll": (lambda x: x.roll(3, 1), "another order"),
    "flip": (lambda x: x.flip(1), "another order"),
    "broadcast_to": (lambda x: x[:, :1].broadcast_to(*x.shape), "fixed width|single channel|part"),
    "swapdims": (lambda x: x.swapdims(1, 3), "mixed with space"),
}


@pytest.mark.parametrize("name", HELD)
def test_a_move_that_holds_channels(name):
    move, _ = HELD[name]
    net = middle(lambda s, x: move(x))
    shrink(net, X, rows_off(net, "stem", [1, 3, 6]), smaller=False)


def test_tensor_split_into_equal_parts():
    def forward(s, x):
        a, b = x.tensor_split(2, dim=1)
        return torch.cat([F.relu(s.a(a)), b], 1)

    net = middle(forward, a=conv(4, 4))
    shrink(net, X, rows_off(net, "stem", [0, 3, 5, 6]))
    assert shapes(net, "stem", "a") == [(4, 3), (4, 2)]


@pytest.mark.parametrize("method", ["view_as", "reshape_as"])
def test_a_view_of_the_sizes_of_another(method):
    def forward(s, x):
        flat = s.norm(x.flatten(2).transpose(1, 2).flatten(0, 1))
        return getattr(flat.view(2, 64, -1).transpose(1, 2).contiguous(), method)(x) * x

    net = middle(forward, norm=nn.BatchNorm1d(8))
    shrink(net, X, rows_off(net, "stem", [0, 3, 6], "norm"))
    assert shapes(net, "stem", "head") == [(5, 3), (4, 5)]


def test_as_many_go_of_what_is_viewed_as_of_what_gives_the_sizes():
    def forward(s, x):
        return s.a(x).flatten(1).reshape_as(s.b(x))

    net = middle(forward, a=conv(8, 8), b=conv(8, 8))
    masks = rows_off(net, "a", [0, 3])
    shrink(net, X, masks, smaller=False)
    net = middle(forward, a=conv(8, 8), b=conv(8, 8))
    shrink(net, X, {**masks, **rows_off(net, "b", [1, 5])})
    assert shapes(net, "a", "b", "head") == [(6, 8), (6, 8), (4, 6)]


class Positions(nn.Module):
    """A parameter of positions and channels is added, and one of channels taken away."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.rand(1, 8, 8, 8))
        self.shift = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        return x + self.positions - self.shift


def test_a_parameter_that_is_added_to_channels_goes_with_them():
    net = middle(lambda s, x: s.add(x), add=Positions())
    assert reasons(net, X)["stem"] is None
    small = shrink(net, X, {**rows_off(net, "stem", [0, 3]), **shifted_off(net, [0, 3])})
    assert tuple(net.add.positions.shape) == (1, 6, 8, 8)
    assert tuple(net.add.shift.shape) == (6, 1, 1)
    assert small.report() is not None


def test_a_mask_of_the_filters_alone_masks_it_too():
    net = middle(lambda s, x: s.add(x), add=Positions())
    expected = {**rows_off(net, "stem", [0, 3]), **shifted_off(net, [0, 3])}
    other = middle(lambda s, x: s.add(x), add=Positions())
    other.load_state_dict(net.state_dict())
    shrink(net, X, expected)
    from nni_gconv import ModelSpeedup

    small = ModelSpeedup(other, X, rows_off(other, "stem", [0, 3])).speedup_model()
    assert torch.equal(small(X), net(X))


def shifted_off(net, rows):
    masks = {"positions": torch.ones(1, 8, 8, 8), "shift": torch.ones(8, 1, 1)}
    masks["positions"][:, rows] = 0
    masks["shift"][rows] = 0
    return {"add": masks}


def test_a_parameter_that_is_compared_with_channels_holds_them():
    class Floor(Positions):
        def forward(self, x):
            return torch.maximum(x, self.shift)

    net = middle(lambda s, x: s.floor(x), floor=Floor())
    assert "maximum of a parameter and each channel" in reasons(net, X)["stem"]


def test_other_sizes_of_the_batch():
    net = middle(lambda s, x: x.tile(1, 2, 1, 1), width=16)
    shrink(net, X, rows_off(net, "stem", [0, 3, 6]), inputs=randn(5, 3, 8, 8))
