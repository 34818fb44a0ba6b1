"""Stacks, and concatenations under all their names."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import rows_off, shrink
from torch import nn

GONE = [1, 4, 6]


@pytest.mark.parametrize(
    "way",
    [
        lambda parts: torch.stack(parts, 1).sum(1),
        lambda parts: torch.stack(parts).amax(0),
        lambda parts: torch.stack(parts, dim=-1).mean(-1),
        lambda parts: sum(torch.stack(parts, 0).unbind(0)),
        lambda parts: torch.stack(parts, 2)[:, :, 1],
    ],
)
def test_a_stack_goes_together(way):
    net = middle(lambda s, x: way([s.a(x), s.b(x)]), a=conv(8, 8), b=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE, "b"))
    assert shapes(net, "a", "b", "head") == [(5, 8), (5, 8), (4, 5)]


def test_half_of_a_stack_stays_as_zeros():
    net = middle(lambda s, x: torch.stack([s.a(x), s.b(x)], 1).sum(1), a=conv(8, 8), b=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE), smaller=False)


def test_a_constant_beside_zero_in_a_stack():
    """What is known of the parts of a stack is known of each, not of all."""

    def forward(s, x):
        return torch.sigmoid(torch.stack([s.a(x), s.b(x)], 1)).mean(1)

    net = middle(forward, a=conv(8, 8), b=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE, "b"), constants="fold")
    assert net.head.in_channels == 5


def test_a_stack_with_a_fixed_tensor():
    fixed = torch.rand(2, 8, 8, 8).double()
    net = middle(lambda s, x: torch.stack([s.a(x), fixed], 1).sum(1), a=conv(8, 8))
    assert "stacked with a tensor of fixed width" in reasons(net, X)["a"]
    shrink(net, X, rows_off(net, "a", GONE), smaller=False)


def test_selective_kernels():
    """Two branches weighed by a softmax over them, as in SK networks."""

    def forward(s, x):
        parts = torch.stack([s.a(x), s.b(x)], 1)
        gate = s.up(F.relu(s.down(parts.sum(1).mean((2, 3), keepdim=True))))
        n, c = gate.shape[:2]
        gate = gate.view(n, 2, c // 2, 1, 1).softmax(1)
        return (parts * gate).sum(1)

    net = middle(forward, a=conv(8, 8), b=conv(8, 8), down=conv(8, 4, 1), up=conv(4, 16, 1))
    masks = rows_off(net, "a", GONE, "b")
    masks |= rows_off(net, "up", [*GONE, *(8 + r for r in GONE)])
    shrink(net, X, masks)
    assert shapes(net, "a", "b", "down", "up") == [(5, 8), (5, 8), (4, 5), (10, 4)]


@pytest.mark.parametrize("cat", [torch.concat, torch.concatenate, lambda x, dim: torch.hstack(x)])
def test_other_names_of_a_concatenation(cat):
    net = middle(lambda s, x: cat([s.a(x), x], dim=1), width=16, a=conv(8, 8))
    shrink(net, X, {**rows_off(net, "a", GONE), **rows_off(net, "stem", [0])})
    assert shapes(net, "stem", "a", "head") == [(7, 3), (5, 7), (4, 12)]


class Blur(nn.Module):
    def __init__(self, persistent):
        super().__init__()
        kernel = torch.tensor([[1.0, 2.0, 1.0]]).T @ torch.tensor([[1.0, 2.0, 1.0]]) / 16
        self.register_buffer("filt", kernel.expand(8, 1, 3, 3).clone(), persistent=persistent)

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.filt, groups=x.shape[1])


@pytest.mark.parametrize("persistent", [True, False])
def test_blur_pooling(persistent, tmp_path):
    from nni_gconv import load_compact, save_compact

    def build():
        return middle(lambda s, x: s.blur(x), blur=Blur(persistent))

    net = build()
    shrink(net, X, rows_off(net, "stem", GONE))
    assert shapes(net, "stem", "head") == [(5, 3), (4, 5)]
    assert net.blur.filt.shape[0] == 5
    loaded = load_compact(save_compact(net, tmp_path / "small.safetensors"), build)
    assert torch.equal(loaded.double()(X), net(X))
