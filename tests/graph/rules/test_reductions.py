"""Sums, norms and largest values over channels: zeros make no difference."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import line_of, rows_off, shrink

GONE = [1, 4, 6]


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x.sum(1, keepdim=True),
        lambda x: x.sum(dim=1).unsqueeze(1),
        lambda x: x.norm(dim=1, keepdim=True),
        lambda x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True),
        lambda x: x.sum((1, 2, 3), keepdim=True),
        lambda x: x.amax(1, keepdim=True),
        lambda x: x.max(1, keepdim=True)[0],
        lambda x: torch.max(x, dim=1).values[:, None],
        lambda x: F.avg_pool2d(x, 3, 1, 1).amax(1, keepdim=True),
        lambda x: torch.sigmoid(x.abs().sum(1, keepdim=True)),
    ],
)
def test_zeros_make_no_difference(gate):
    """The stem ends in a ReLU: nothing behind it is negative."""
    net = middle(lambda s, x: x * gate(x))
    shrink(net, X, rows_off(net, "stem", GONE))
    assert shapes(net, "stem", "head") == [(5, 3), (4, 5)]


def test_normalised_channels():
    net = middle(lambda s, x: F.normalize(s.a(x), dim=1), a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE))
    assert shapes(net, "a") == [(5, 8)]


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        (lambda x: x.mean(1, keepdim=True), "mean over channels"),
        (lambda x: x.amin(1, keepdim=True), "amin over channels"),
        (lambda x: x.var(1, keepdim=True), "var over channels"),
        (lambda x: torch.var_mean(x, 1, keepdim=True)[0], "var_mean over channels"),
        (lambda x: (x - 1).amax(1, keepdim=True), "amax over channels"),
        (lambda x: (-x).amax(1, keepdim=True), "amax over channels"),
        (lambda x: torch.linalg.vector_norm(x, -1, dim=1, keepdim=True), "vector_norm over"),
        (lambda x: x.argmax(1, keepdim=True) * 1.0, "argmax"),
        (lambda x: x.max(1, keepdim=True)[1] * 1.0, "places of channels taken"),
    ],
)
def test_what_counts_zeros_keeps_its_width(gate, why):
    net = middle(lambda s, x: x * gate(x))
    assert why in reasons(net, X)["stem"]
    shrink(net, X, rows_off(net, "stem", GONE), smaller=False)
    assert shapes(net, "stem") == [(8, 3)]


@pytest.mark.parametrize("constants", ["silence", "fold"])
def test_what_is_summed_has_to_be_zero(constants):
    """``sigmoid(0)`` is 0.5: a masked channel counts, and stays."""
    net = middle(lambda s, x: x * torch.sigmoid(x).sum(1, keepdim=True))
    shrink(net, X, rows_off(net, "stem", GONE), smaller=False, constants=constants)


@pytest.mark.parametrize("way", [torch.maximum, torch.max, torch.min])
def test_the_larger_of_two(way):
    net = middle(lambda s, x: way(s.a(x), s.b(x)), a=conv(8, 8), b=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE, "b"))
    assert shapes(net, "a", "b", "head") == [(5, 8), (5, 8), (4, 5)]


def test_the_largest_in_space_with_its_place():
    net = middle(lambda s, x: s.a(x).flatten(2).max(2)[0][:, :, None, None], a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE))
    assert shapes(net, "a", "head") == [(5, 8), (4, 5)]
    assert line_of(type(net), "self._middle(self") != ""
