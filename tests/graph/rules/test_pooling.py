"""Resizing treats each channel by itself, whatever its mode."""

import pytest
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
