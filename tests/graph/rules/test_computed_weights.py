"""Layers that run with other weights than their own are cut in their parameters."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import outputs_of, rows_off, shrink
from torch import nn

from nni_gconv import FPGMPruner, load_compact, save_compact
from nni_gconv.errors import CheckpointError
from nni_gconv.export import export_model
from nni_gconv.graph import KeptStandardConv2d, find_norm, find_standard
from nni_gconv.graph.norms import recognise as norms
from nni_gconv.graph.weights import recognise


class Sparse(nn.Conv2d):
    """A convolution some of whose connections are cut for good, as X-nets have them."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        generator = torch.Generator().manual_seed(0)
        pattern = torch.randint(2, self.weight.shape, generator=generator).float()
        self.pattern = nn.Parameter(pattern, requires_grad=False)

    def forward(self, x):
        weight = self.weight.mul(self.pattern)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class Scaled(nn.Conv2d):
    """Filters of mean zero and of one variance, as nets without norms have them."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.scale, self.eps = self.weight[0].numel() ** -0.5, 1e-6

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=self.eps)
        return F.conv2d(
            x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding,
            self.dilation, self.groups,
        )  # fmt: skip


class ByHand(nn.Conv2d):
    """The same written out, without factors, and padded for any size."""

    epsilon = 1e-3

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "padding": 0})
        self.epsilon = 1e-3

    def forward(self, x):
        weight = self.weight
        variance, mean = torch.var_mean(weight, [1, 2, 3], keepdim=True, unbiased=False)
        height, width = x.shape[-2:]
        down, right = (
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip((height, width), self.stride, self.kernel_size, strict=True)
        )
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        weight = (weight - mean) / torch.sqrt(variance + self.epsilon)
        return F.conv2d(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)


KINDS = {"sparse": Sparse, "scaled": Scaled, "by hand": ByHand}


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_a_computed_weight_are_cut(kind):
    a, b = (KINDS[kind](8, 8, 3, padding=1, stride=s) for s in (2, 1))
    net = middle(lambda s, x: s.b(F.relu(s.a(x))), a=a, b=b)
    assert reasons(net, X)["stem"] is None
    masks = {**rows_off(net, "stem", [1, 2, 6]), **rows_off(net, "a", [0, 7])}
    speedup = shrink(net, X, masks, verify=True)
    assert shapes(net, "stem", "a", "b", "head") == [(5, 3), (6, 5), (8, 6), (4, 8)]
    assert speedup.report().difference < 1e-9
    masks = {**rows_off(net, "stem", [0]), **rows_off(net, "a", [2])}
    if hasattr(net.a, "rest"):  # what went of a filter goes with it
        masks["a"]["rest"] = masks["a"]["weight"].flatten(1)[:, :4]
    shrink(net, X, masks, verify=True)
    assert shapes(net, "stem", "a", "b", "head") == [(4, 3), (5, 4), (8, 5), (4, 8)]


@pytest.mark.parametrize("kind", ["scaled", "by hand"])
def test_filters_in_groups_are_standardised_as_they_were(kind):
    grouped, depthwise = KINDS[kind](8, 8, 3, padding=1, groups=2), conv(8, 8, groups=8)
    net = middle(lambda s, x: s.b(s.a(x)), a=grouped, b=depthwise)
    masks = {**rows_off(net, "stem", [1, 6]), **rows_off(net, "a", [0, 5])}
    shrink(net, X, masks, verify=True)
    assert shapes(net, "stem", "a", "b") == [(6, 3), (6, 3), (6, 1)]
    assert (net.a.groups, net.b.groups) == (2, 6)


def test_filters_that_lose_no_column_keep_their_class():
    net = middle(lambda s, x: s.b(s.a(x)), a=Scaled(8, 8, 3, padding=1), b=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [3]), verify=True)
    assert type(net.a) is Scaled and net.a.gain.shape == (7, 1, 1, 1)


def test_what_a_filter_lost_counts():
    net = middle(lambda s, x: s.a(x), a=Scaled(8, 8, 3, padding=1))
    shrink(net, X, rows_off(net, "stem", [1, 2]))
    expected = outputs_of(net, X)
    net.a.rest.zero_()
    worst = float((outputs_of(net, X)[0] - expected[0]).abs().max())
    assert worst > 1e-3 * float(expected[0].abs().max())


def standardised_net():
    net = middle(lambda s, x: s.a(x), a=Scaled(8, 8, 3, padding=1))
    dense = copy.deepcopy(net)
    shrink(net, X, rows_off(net, "stem", [1, 2, 6]), verify=True)
    return net, dense


def test_it_saves_reloads_and_trains(tmp_path):
    net, dense = standardised_net()
    file = save_compact(net, tmp_path / "small.safetensors")
    again = load_compact(file, lambda: dense)
    assert isinstance(again.a, KeptStandardConv2d)
    assert torch.equal(outputs_of(again, X)[0], outputs_of(net, X)[0])
    with pytest.raises(CheckpointError, match="no convolution that standardises"):
        load_compact(file, lambda: middle(lambda s, x: s.a(x), a=conv(8, 8)))
    torch.save(net.state_dict(), io.BytesIO())
    before = net.a.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(net.a.weight, before)


@pytest.mark.slow
def test_it_exports(tmp_path):
    net, _ = standardised_net()
    export_model(net.float(), X.float(), tmp_path / "small.onnx")  # compares


def test_a_pruner_selects_and_cuts_what_computes_its_weight():
    net = middle(lambda s, x: s.b(F.relu(s.a(x))), a=Sparse(8, 8, 1), b=Scaled(8, 8, 1))
    config = [{"op_names": ["stem", "a"], "sparse_ratio": 0.5}]
    pruner = FPGMPruner(net, config, dummy_input=X)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    shrink(net, X, masks, verify=True)
    assert shapes(net, "stem", "a", "b") == [(4, 3), (4, 4), (8, 4)]


def test_weights_that_depend_on_the_input_stay():
    net = middle(lambda s, x: F.conv2d(x, s.a.weight * x.sum()), a=conv(8, 8, 1))
    assert "read by a layer, whose weights are computed" in reasons(net, X)["stem"]


def test_what_is_more_than_standardised_is_left_alone():
    class More(Scaled):
        def forward(self, x):
            return super().forward(x) * 2

    assert find_standard(Scaled(4, 6, 3).double()).gain == "gain"
    assert find_standard(ByHand(4, 6, 3)).same
    assert find_standard(More(4, 6, 3)) is None


def test_convolutions_that_are_alike_are_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(recognise, "_tried", tried.append)
    hooked, other, sized = Scaled(4, 6, 3), Scaled(4, 6, 3), Scaled(4, 6, 3)
    hooked.register_forward_hook(lambda *_: None)
    other.eps = 1e-5
    sized.extra = [1]  # no number nor word: what it is for is not known
    one = Scaled(4, 6, 3)
    known = {}
    for module in (one, Scaled(4, 6, 3), other, hooked, sized, Scaled(4, 8, 3), one):
        find_standard(module, known)
    assert tried[0] is one
    assert [type(m) for m in tried] == [Scaled] * 5
    assert tried[1:4] == [other, hooked, sized]


@pytest.mark.parametrize("options", [{"groups": 2}, {"stride": 2}, {"bias": False}])
@pytest.mark.parametrize("kind", [Scaled, ByHand])
def test_a_few_filters_tell_what_all_do(kind, options):
    module = kind(4, 24, 3, **options)
    found = find_standard(module)
    assert (
        (found.eps, found.same, found.count) == (module.eps, False, 36 // module.groups)
        if (kind is Scaled)
        else (found.eps, found.same) == (1e-3, True)
    )
    assert found.factor == pytest.approx(getattr(module, "scale", 1.0))


def test_kernels_are_not_tried_as_a_norm():
    # Each of its numbers would be a channel of an image.
    assert find_norm(Scaled(64, 64, 3, bias=False)) is None
    assert not norms._may_be(ByHand(4, 4, 3, bias=False))
