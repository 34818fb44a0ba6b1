"""Forms of a grouped convolution: equal, number for number, and remade when weights change."""

import copy
import io

import pytest
import torch
from torch import nn

from nni_gconv.graph import trace
from nni_gconv.groupconv import gathers_of, wrap_gathers
from nni_gconv.groupconv.forms import Form, FormTimer, forms_of, in_form

CASES = [
    {"groups": 1},
    {"groups": 2},
    {"groups": 4, "bias": False},
    {"groups": 4, "stride": 2, "padding": 1},
    {"groups": 2, "padding": 2, "dilation": 2},
    {"groups": 8},
    {"groups": 2, "padding": "same"},
    {"groups": 2, "padding": 1, "padding_mode": "reflect"},
    {"groups": 4, "kernel_size": 1},
    {"groups": 2, "kernel_size": 1, "stride": 2, "bias": False},
    {"groups": 4, "kernel_size": 1, "padding": 1},
    {"groups": 4, "kernel_size": (1, 3), "stride": (1, 2)},
]


def conv(out=16, **settings):
    torch.manual_seed(0)
    return nn.Conv2d(8, out, **{"kernel_size": 3, **settings})


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_every_form_is_equal_in_float64_and_float32(case, last):
    layer = conv(**case)
    forms = forms_of(layer)
    assert forms[0] == Form("plain", layer.groups)
    x = torch.randn(3, 8, 9, 7)
    for form in forms:
        made = in_form(layer, form, channels_last=last)
        with torch.no_grad():
            assert torch.allclose(made(x), layer(x), atol=1e-5), form
            exact, wanted = copy.deepcopy(made).double(), copy.deepcopy(layer).double()
            got, expected = exact(x.double()), wanted(x.double())
            assert float((got - expected).abs().max()) < 1e-9, form
            single = made(x[0])  # an image without a batch
            assert torch.allclose(single, layer(x[0]), atol=1e-5), form


def test_forms_by_what_a_layer_allows():
    def names(layer):
        return {str(f) for f in forms_of(layer) if f.kind != "packed"}

    grouped = {"plain, 4 groups", "plain, 2 groups", "plain, dense", "split, 4 groups"}
    assert names(conv(groups=4)) == grouped
    assert names(conv(groups=4, kernel_size=1)) == {*grouped, "matmul, 4 groups"}
    assert names(conv(groups=1)) == {"plain, dense"}
    depthwise = nn.Conv2d(64, 64, 3, groups=64)
    assert names(depthwise) == {f"plain, {n} groups" for n in (64, 32, 16, 8, 4)}
    assert forms_of(nn.Conv1d(4, 4, 3, groups=2)) == ()
    assert forms_of(nn.Linear(2, 2)) == ()
    hooked = conv()
    hooked.register_forward_hook(lambda *_: None)
    assert forms_of(hooked) == ()
    assert forms_of(nn.utils.parametrizations.weight_norm(conv())) == ()


@pytest.mark.parametrize(
    ("before", "behind"), [([3, 1, 0, 2, 7, 6, 5, 4], None), (None, [1, 0, 3, 2] * 4)]
)
def test_gathers_go_into_a_dense_layer(before, behind):
    net = nn.Sequential(conv(groups=4))
    wrap_gathers(net, "0", before, behind)
    x = torch.randn(2, 8, 5, 5)
    for form in forms_of(net[0]):
        made = in_form(net[0], form)
        assert torch.allclose(made(x), net(x), atol=1e-5), form
        assert bool(gathers_of(made)) == (form.groups > 1)


def test_a_selection_of_unknown_inputs_stays_a_gather():
    net = nn.Sequential(conv(groups=2))
    wrap_gathers(net, "0", [0, 9, 2, 3, 4, 5, 6, 7], None)
    made = in_form(net[0], Form("plain", 1))
    assert list(gathers_of(made)) == ["in"]
    x = torch.randn(1, 10, 5, 5)
    assert torch.allclose(made(x), net(x), atol=1e-5)


def packed():
    layer = conv(groups=2, padding=1)
    form = Form("packed", 2)
    if form not in forms_of(layer):
        pytest.skip("this torch packs no weights")
    return layer, in_form(layer, form)


def test_packed_weights_follow_the_weights():
    layer, made = packed()
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        made(x)
        assert made._packed is not None
        made.weight.mul_(2)
        layer.weight.mul_(2)
        assert torch.allclose(made(x), layer(x), atol=1e-5)
        made.load_state_dict(conv(groups=2, padding=1).state_dict())
        layer.load_state_dict(made.state_dict())
        for size in (6, 11):  # packed for one size, used for all
            x = torch.randn(4, 8, size, size)
            assert torch.allclose(made(x), layer(x), atol=1e-5)


def test_a_packed_layer_can_be_copied_saved_traced_and_trained():
    layer, made = packed()
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        made(x)
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    stream = io.BytesIO()
    torch.save(made, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert torch.allclose(again(x), layer(x), atol=1e-5)
    assert [n.target for n in trace(made, x).nodes if "conv" in str(n.target)]
    made.requires_grad_(True)
    made(x).sum().backward()
    assert made.weight.grad is not None
    program = torch.export.export(made.requires_grad_(False), (x,))
    assert torch.allclose(program.module()(x), layer(x), atol=1e-5)


def test_plain_values_and_unknown_ones():
    form = Form("split", 4)
    assert Form.from_dict(form.to_dict()) == form
    for other in ({}, {"kind": "winograd", "groups": 2}, {"kind": "plain", "groups": "2"}):
        assert Form.from_dict(other) is None


def test_the_timer_times_equal_layers_once_and_sorts():
    timer = FormTimer(min_runs=1, min_seconds=0)
    rows = timer.times(conv(groups=2), (1, 8, 6, 6))
    times = [row.milliseconds for row in rows]
    assert times == sorted(times)
    assert {(r.form, r.channels_last) for r in rows} == {
        (f, last)
        for f in forms_of(conv(groups=2))
        for last in (False, True)
        if last or f.kind != "packed"
    }
    assert timer.times(conv(groups=2), (1, 8, 6, 6)) is rows
    assert timer.times(conv(groups=2), (1, 8, 7, 7)) is not rows
