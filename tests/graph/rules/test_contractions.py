"""Matrix products over channels: what is zero in one operand adds nothing."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import rows_off, shrink
from torch import nn

GONE = [1, 4, 6]


def by_matmul(q, k):
    return (q.flatten(2).transpose(1, 2) @ k.flatten(2)).softmax(-1)


def by_bmm(q, k):
    return torch.bmm(q.flatten(2).transpose(1, 2), k.flatten(2)).softmax(-1)


def by_einsum(q, k):
    return torch.einsum("bci, bcj -> bij", q.flatten(2), k.flatten(2)).softmax(-1)


def attend(weights):
    def forward(s, x):
        p = weights(s.q(x), s.k(x))
        y = s.v(x).flatten(2) @ p.transpose(1, 2)
        return x + s.out(y.unflatten(2, x.shape[2:]))

    return forward


def attention_net(weights):
    layers = {name: conv(8, 8, 1, bias=False) for name in ("q", "k", "v", "out")}
    return middle(attend(weights), **layers)


@pytest.mark.parametrize("weights", [by_matmul, by_bmm, by_einsum])
def test_queries_keys_and_values(weights):
    net = attention_net(weights)
    masks = {**rows_off(net, "q", GONE), **rows_off(net, "k", GONE)}
    masks |= {
        **rows_off(net, "v", [0]),
        **rows_off(net, "stem", [2, 3]),
        **rows_off(net, "out", [2, 3]),
    }
    shrink(net, X, masks)
    assert shapes(net, "stem", "q", "k", "v", "out") == [(6, 3), (5, 6), (5, 6), (7, 6), (6, 7)]


def test_zero_in_one_operand_is_enough():
    """Whatever the key holds there, the query's zeros are what it is multiplied with."""
    net = attention_net(by_matmul)
    shrink(net, X, rows_off(net, "q", GONE), constants="fold")
    assert shapes(net, "q", "k") == [(5, 8), (5, 8)]
    net = attention_net(by_matmul)
    net.k.bias = nn.Parameter(torch.rand(8).double())
    masks = rows_off(net, "q", GONE)
    masks["k"] = {"weight": rows_off(net, "k", GONE)["k"]["weight"]}  # its bias is left
    shrink(net, X, masks, constants="fold")
    assert shapes(net, "q", "k") == [(5, 8), (5, 8)]


def test_what_is_zero_in_neither_stays():
    net = attention_net(by_matmul)
    net.k.bias = nn.Parameter(torch.rand(8).double())
    net.q.bias = nn.Parameter(torch.rand(8).double())
    masks = {n: {"weight": rows_off(net, n, GONE)[n]["weight"]} for n in ("q", "k")}
    shrink(net, X, masks, smaller=False, constants="fold")
    assert shapes(net, "q", "k") == [(8, 8), (8, 8)]


def test_a_fixed_operand_holds_the_other():
    table = torch.rand(4, 8).double()
    net = middle(lambda s, x: (table @ s.a(x).flatten(2)).mean(1)[:, None, :, None] * x.mean(
        (2, 3), keepdim=True), a=conv(8, 8))  # fmt: skip
    assert "multiplied with a tensor of fixed width" in reasons(net, X)["a"]
    shrink(net, X, rows_off(net, "a", GONE), smaller=False)


def test_cosine_similarity_asks_for_zero_in_both():
    def gate(s, x):
        return x * F.cosine_similarity(s.a(x), s.b(x), dim=1)[:, None]

    net = middle(gate, a=conv(8, 8, bias=False), b=conv(8, 8))
    shrink(net, X, rows_off(net, "a", GONE, "b"))
    assert shapes(net, "a", "b") == [(5, 8), (5, 8)]
    net = middle(gate, a=conv(8, 8, bias=False), b=conv(8, 8))
    masks = rows_off(net, "a", GONE)
    masks["b"] = {"weight": rows_off(net, "b", GONE)["b"]["weight"]}  # it still has a length
    shrink(net, X, masks, smaller=False, constants="fold")


def test_channels_among_themselves():
    """A correlation of channels with channels has them on both sides."""

    def gram(s, x):
        y = s.a(x).flatten(2)
        return (F.relu(y @ y.transpose(1, 2)) @ y).unflatten(2, x.shape[2:])

    net = middle(gram, a=conv(8, 8, bias=False))
    shrink(net, X, rows_off(net, "a", GONE))
    assert shapes(net, "a", "head") == [(5, 8), (4, 5)]
