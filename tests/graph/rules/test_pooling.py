"""Resizing treats each channel by itself, whatever its mode."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, shapes
from speedup_tools import rows_off, shrink

MODES = {
    "nearest": {},
    "nearest-exact": {},
    "bilinear": {"align_corners": False},
    "bicubic": {},
    "bilinear smoothed": {"antialias": True},
    "bicubic smoothed": {"antialias": True},
    "area": {},
}


@pytest.mark.parametrize("constants", ["silence", "fold"])
@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("factor", [2, 0.5])
def test_channels_go_through_an_interpolation(name, factor, constants):
    def resized(s, x):
        return F.interpolate(
            s.a(x), scale_factor=factor, mode=name.partition(" ")[0], **MODES[name]
        )

    net = middle(resized, a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [1, 4, 6]), constants=constants)
    assert shapes(net, "a", "head") == [(5, 8), (4, 5)]


@pytest.mark.parametrize(("name", "read"), [("nearest-exact", 5), ("bicubic", 8)])
def test_only_copies_of_a_constant_are_that_constant(name, read):
    """A filter that emits its bias: exact numbers may be folded, weighted sums are rounded."""

    def resized(s, x):
        return F.interpolate(s.a(x), scale_factor=2, mode=name)

    net = middle(resized, a=conv(8, 8))
    masks = {"a": {"weight": rows_off(net, "a", [1, 4, 6])["a"]["weight"]}}
    shrink(net, X, masks, constants="fold", smaller=read < 8)
    assert net.head.in_channels == read


def test_unpooling():
    def forward(s, x):
        y, places = F.max_pool2d(s.a(x), 2, return_indices=True)
        return F.max_unpool2d(y, places, 2)

    net = middle(forward, a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [1, 4, 6]))
    assert shapes(net, "a", "head") == [(5, 8), (4, 5)]


def test_sampling_at_a_grid():
    def forward(s, x):
        grid = torch.tanh(s.where(x)).permute(0, 2, 3, 1)
        return F.grid_sample(s.a(x), grid, align_corners=False)

    net = middle(forward, a=conv(8, 8), where=conv(8, 2))
    shrink(net, X, rows_off(net, "a", [1, 4, 6]))
    assert shapes(net, "a", "where", "head") == [(5, 8), (2, 8), (4, 5)]
