"""Widths that are written in a forward, and sizes that follow the shapes it meets."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons
from speedup_tools import line_of, randn, randomise, rows_off, shrink
from torch import nn

from nni_gconv.graph import watch_sizes


class Flat(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.stem, self.fc = conv(3, 8), nn.Linear(512, 5)
        self.flatten = flatten

    def forward(self, x):
        return self.fc(self.flatten(F.relu(self.stem(x))))


class LiteralView(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0], 512)


class FreeBatchView(nn.Module):
    def forward(self, x):
        return x.view(-1, 512)


class FreeView(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


@pytest.mark.parametrize("flatten", [nn.Flatten(), FreeView()])
def test_flatten_before_linear(flatten):
    net = randomise(Flat(flatten))
    shrink(net, X, rows_off(net, "stem", [0, 5, 6]))
    assert (net.stem.out_channels, net.fc.in_features) == (5, 5 * 64)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("flatten", "text"),
    [(LiteralView(), "x.view(x.shape[0]"), (FreeBatchView(), "x.view(-1")],
)
def test_literal_width_is_found_and_pinned(flatten, text, batch):
    net = randomise(Flat(flatten))
    dummy = randn(batch, 3, 8, 8)
    speedup = shrink(net, dummy, rows_off(net, "stem", [0, 5, 6]), smaller=False)
    notes = " ".join(speedup.report().notes)
    assert "3 masked channels stay as zeros: a width is written in the forward" in notes
    if batch == 1 or "-1" not in text:
        assert line_of(type(flatten), text) in notes


def test_literal_width_deep_in_a_sequential():
    """No line of the user's own code fails: the layer that does is found all the same."""
    body = [layer for _ in range(40) for layer in (conv(8, 8, bias=False), nn.ReLU())]
    net = nn.Sequential(
        conv(3, 8), *body, nn.AdaptiveAvgPool2d(2), NarrowFreeBatchView(), nn.Linear(32, 3)
    )
    net = randomise(net)
    # Half of the channels fit the literal width with half of the batch: the next layer fails.
    masks = {**rows_off(net, "0", [1]), **rows_off(net, "79", [2, 3, 4, 5])}
    shrink(net, X, masks)
    assert (net[0].out_channels, net[79].out_channels) == (7, 8)


class NarrowFreeBatchView(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 32)


HALVES = {
    "floor": lambda x: x.shape[1] // 2,
    "shift": lambda x: x.size(1) >> 1,
    "negative": lambda x: -(-x.size(dim=-3) // 2),
    "ceiling": lambda x: math.ceil(x.size()[1] / 2),
    "rounded": lambda x: round(x.shape[1] / 2),
    "truncated": lambda x: math.trunc(x.shape[1] / 2),
    "division": lambda x: divmod(x.shape[1], 2)[0],
    "number": lambda x: x[0].numel() // (2 * x.shape[2] * x.shape[3]),
    "product": lambda x: x.shape[1:].numel() // (2 * x.shape[2:].numel()),
    "sum": lambda x: sum((x.shape + x.shape)[1:2]) // 2,
    "plain number": lambda x: int(x.shape[1] / 2),
    "plain product": lambda x: int(x.shape[1] * 0.5),
    "converted": lambda x: int(x.shape[1]) // 2,
}


@pytest.mark.parametrize("name", HALVES)
def test_sizes_that_follow(name):
    """Also where a size loses its origin on the way: then it is tried."""
    net = middle(lambda s, x: x.view(x.shape[0], 2, HALVES[name](x), 8, 8).amax(1), width=4)
    assert reasons(net, X)["stem"] is None
    shrink(net, X, rows_off(net, "stem", [1, 5]))
    assert (net.stem.out_channels, net.head.in_channels) == (6, 3)


def test_two_literal_sizes_are_known_from_the_trace():
    net = middle(lambda s, x: x.view(x.shape[0], 2, 4, 8, 8).amax(1), width=4)
    assert "a width is written in the forward" in reasons(net, X)["stem"]
    net = middle(lambda s, x: torch.cat(s.a(x).split(4, 1), 1), a=conv(8, 8))
    assert "a width is written in the forward" in reasons(net, X)["a"]
    net = randomise(Flat(LiteralView()))
    assert line_of(LiteralView, "x.view(") in reasons(net, X)["stem"]


def test_forward_that_insists_on_plain_numbers():
    def forward(s, x):
        if type(x.shape[1]) is not int or type(x.shape) is not torch.Size:
            raise TypeError("no plain number")
        return x.view(len(x), 2, x.shape[1] // 2, 8, 8).amax(1)

    net = middle(forward, width=4)
    shrink(net, X, rows_off(net, "stem", [1, 5]))
    assert net.stem.out_channels == 6


def test_watching_leaves_no_trace():
    net = middle(lambda s, x: x.flatten(2).unflatten(2, x.shape[2:]))
    with watch_sizes(net):
        net(X)
        assert "forward" in net.__dict__
    assert "forward" not in net.__dict__
    net.forward = forward = net.forward  # as a wrapper puts it there
    with pytest.raises(ZeroDivisionError), watch_sizes(net):
        raise ZeroDivisionError
    assert net.__dict__["forward"] is forward


@functools.cache
def arranged(*shape):
    n, c, h, w = shape
    return n, 2, c // 2, h, w


def test_shapes_remembered_from_another_call():
    """As einops does: what was worked out once from plain numbers is no number in the code."""
    net = middle(lambda s, x: x.reshape(arranged(*x.shape)).amax(1), width=4)
    net(X)
    assert reasons(net, X)["stem"] is None
    shrink(net, X, rows_off(net, "stem", [1, 5]))
    assert net.stem.out_channels == 6
