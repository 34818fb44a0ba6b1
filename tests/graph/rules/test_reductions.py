"""Sums, norms and largest values over channels: zeros make no difference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import Net, X, conv, middle, reasons, shapes
from speedup_tools import line_of, masked, outputs_of, randomise, rows_off, shrink
from torch import nn

from nni_gconv import load_compact, save_compact

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
        (lambda x: x.mean(1, keepdim=True), "mean over channels, whose divisor no layer"),
        (lambda x: x.amin(1, keepdim=True), "amin over channels"),
        (lambda x: x.var(1, keepdim=True), "var over channels"),
        (lambda x: torch.var_mean(x, 1, keepdim=True)[0], "var_mean over channels"),
        (lambda x: (x - 1).amax(1, keepdim=True), "amax over channels that may be negative"),
        (lambda x: (-x).amax(1, keepdim=True), "amax over channels that may be negative"),
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


class SpatialGate(nn.Module):
    """Spatial attention of CBAM."""

    def __init__(self):
        super().__init__()
        self.conv = conv(2, 1, 3)

    def forward(self, x):
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(pooled))


MEANS = {
    "spatial attention": (lambda s, x: s.gate(x), SpatialGate),
    "pooled": (lambda s, x: x * s.gate(F.adaptive_avg_pool2d(x.mean(1)[:, None], 1)),
               lambda: conv(1, 1, 1)),
    "inside a frame": (lambda s, x: x * s.gate(x.mean(1, True)[..., 1:-1]).amax((2, 3), True),
                       lambda: conv(1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANS)
def test_the_layer_behind_a_mean_keeps_its_divisor(name):
    forward, gate = MEANS[name]
    net = middle(forward, gate=gate())
    dense = copy.deepcopy(net)
    assert reasons(net, X)["stem"] is None
    masks = rows_off(net, "stem", GONE)
    (expected,) = outputs_of(masked(dense, masks), X)
    shrink(net, X, masks, verify=True)
    assert shapes(net, "stem", "head") == [(5, 3), (4, 5)]
    # It can fail: with the weights as they were the mean is of five.
    for old, new in zip(dense.gate.parameters(), net.gate.parameters(), strict=True):
        new.data = old.data.to(new)
    assert float((outputs_of(net, X)[0] - expected).abs().max()) > 1e-4


def test_a_mean_cut_twice_still_divides_by_the_first_width():
    net = middle(lambda s, x: s.gate(x), gate=SpatialGate())
    before = copy.deepcopy(net.gate.conv.weight)
    shrink(net, X, rows_off(net, "stem", GONE))
    shrink(net, X, rows_off(net, "stem", [0]))
    assert shapes(net, "stem") == [(4, 3)]
    share = net.gate.conv.weight / before
    torch.testing.assert_close(
        share[:, 1].detach(), torch.full_like(share[:, 1], 4 / 8).detach(), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(share[:, 0], torch.ones_like(share[:, 0]))


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: x * s.gate(s.gate(x.mean(1, True))),
        lambda s, x: x * s.gate(x.mean(1, True).sqrt()),
        lambda s, x: x * s.gate(x.mean(1, True)) + x.mean(1, True),
        lambda s, x: x * s.gate(torch.cat([x.mean(1, True), x.sum(1, True)], 2)).amax((2, 3), True),
    ],
)  # fmt: skip
def test_a_mean_that_something_else_reads_keeps_its_width(forward):
    net = middle(forward, gate=conv(1, 1, 1))
    assert "divisor" in reasons(net, X)["stem"]
    shrink(net, X, rows_off(net, "stem", GONE), smaller=False)


def test_a_mean_in_a_saved_file(tmp_path):
    def dense():
        return Net(MEANS["spatial attention"][0], gate=SpatialGate())

    net = randomise(dense())
    shrink(net, X, rows_off(net, "stem", GONE))
    save_compact(net, tmp_path / "m.safetensors")
    loaded = load_compact(tmp_path / "m.safetensors", dense).eval()
    torch.testing.assert_close(outputs_of(loaded, X), outputs_of(net, X), rtol=0, atol=0)


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
