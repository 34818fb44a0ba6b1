"""What keeps a masked channel zero on its way, what makes it another number, in-place writes."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, reasons, shapes
from speedup_tools import line_of, rows_off, shrink
from torch import nn


def test_in_place_relu_and_add():
    def forward(s, x):
        y = s.b(F.relu_(s.bn(s.a(x))))
        y += x
        return F.relu_(y)

    net = middle(forward, a=conv(8, 8), bn=nn.BatchNorm2d(8), b=conv(8, 8))
    shrink(net, X, {**rows_off(net, "stem", [0], "b"), **rows_off(net, "a", [5, 6], "bn")})
    assert shapes(net, "stem", "a", "b") == [(7, 3), (6, 7), (7, 6)]


def test_value_read_before_it_is_overwritten():
    """The constant -0.3 is read, then made zero in place: it is not zero for the first reader."""

    def forward(s, x):
        y = s.a(x)
        before = s.b(y)
        return before + F.relu_(y)

    net = middle(forward, a=conv(8, 8), b=conv(8, 8, 1))
    with torch.no_grad():
        net.a.bias.fill_(-0.3)
    masks = {"a": {"weight": rows_off(net, "a", [1, 2])["a"]["weight"]}}
    masks["b"] = {"weight": rows_off(net, "b", [1, 2])["b"]["weight"]}
    masks["b"]["bias"] = rows_off(net, "b", [1, 2])["b"]["bias"]
    shrink(net, X, masks, constants="fold")


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y[:, :, 0].add_(1.0),
        lambda y: y.view(y.shape[0], -1).add_(1.0),
        lambda y: y.detach().add_(1.0),
        lambda y: F.dropout(y, training=False).add_(1.0),
        lambda y: y.transpose(1, 2).copy_(torch.ones_like(y.transpose(1, 2))),
        lambda y: torch.add(y, 1.0, out=y),
    ],
    ids=["select", "view", "detach", "dropout", "copy", "out"],
)
def test_zeros_overwritten_through_an_alias(write):
    def forward(s, x):
        y = F.relu(s.a(x))
        write(y)
        return y

    net = middle(forward, a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [3, 4]), smaller=False, constants="silence")


def test_opaque_operator_names_its_line():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(x).abs()

    net = middle(lambda s, x: s.b(s.spectrum(s.a(x))), a=conv(8, 8), b=conv(8, 8),
                 spectrum=Spectrum())  # fmt: skip
    assert line_of(Spectrum, "torch.fft") in reasons(net, X)["a"]
    assert "fft" in reasons(net, X)["a"]
    shrink(net, X, {**rows_off(net, "stem", [1]), **rows_off(net, "a", [1])})
    assert shapes(net, "stem", "a") == [(7, 3), (8, 7)]


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, padding=1),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, padding=1),
        nn.LPPool2d(2, 2),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveMaxPool2d(3),
        nn.ReflectionPad2d(1),
        nn.ConstantPad2d(1, 0.7),
        nn.Dropout2d(),
        nn.Softplus(),
        nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.MaxPool2d(2)),
        nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.ReflectionPad2d(1), nn.Hardswish()),
    ],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("constants", ["fold", "silence"])
def test_a_constant_and_a_zeroed_channel_through(pool, constants):
    net = middle(lambda s, x: s.pool(s.a(x)), a=conv(8, 8), pool=pool)
    masks = rows_off(net, "a", [3, 4])
    if constants == "fold":
        del masks["a"]["bias"]  # what goes through is the bias
    shrink(net, X, masks, constants=constants, smaller=_goes(pool, constants))


def _goes(pool, constants):
    """Tell whether a channel can go: the constant (fold) or zero (silence) arrives as one."""
    if isinstance(pool, nn.ConstantPad2d | nn.Sequential):
        return False
    if isinstance(pool, nn.Softplus):
        return constants == "fold"  # zero becomes log 2
    if constants == "silence":
        return True
    border = getattr(pool, "padding", 0) and isinstance(pool, nn.AvgPool2d)
    smooth = getattr(pool, "mode", "") == "bilinear"
    ragged = getattr(pool, "ceil_mode", False) and isinstance(pool, nn.AvgPool2d)
    return not border and not smooth and not ragged


def test_constant_in_space_is_not_taken_for_one_per_channel():
    """Eight columns of a map that varies in space are not eight channels."""
    net = middle(
        lambda s, x: s.b(s.pad(s.a(x))[:, :, :1, :8]),
        a=conv(8, 8, bias=False),
        pad=nn.ConstantPad2d((4, 0, 0, 0), 0.5),
        b=conv(8, 8, 1),
    )
    masks = {"a": {"weight": torch.zeros_like(net.a.weight)}}
    shrink(net, X, masks, constants="fold")
    assert shapes(net, "stem", "a", "b") == [(1, 3), (8, 1), (8, 8)]


def test_casts_and_no_grad_blocks():
    def forward(s, x):
        with torch.no_grad():
            statistics = x.mean((2, 3), keepdim=True)
        return s.a(x.to(torch.float64).float().double()) * statistics.mean(1, keepdim=True)

    net = middle(forward, a=conv(8, 8))
    shrink(net, X, {**rows_off(net, "stem", [1]), **rows_off(net, "a", [2, 3])})
    assert net.a.out_channels == 6


def test_cast_does_not_pin():
    net = middle(lambda s, x: s.a(x.to(torch.float64)), a=conv(8, 8))
    shrink(net, X, rows_off(net, "stem", [1]))
    assert net.stem.out_channels == 7


def test_statistics_over_everything_pin():
    net = middle(lambda s, x: x / (1 + torch.std(s.a(x), unbiased=True)), a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [1, 2]), smaller=False)


ZERO_FORMS = {
    "where": lambda y: torch.where(y > 0, y, 0.0),
    "where of zeros": lambda y: torch.where(y > 0, y, torch.zeros_like(y)),
    "where the other way": lambda y: torch.where(y < 0, torch.zeros_like(y), y),
    "masked_fill": lambda y: y.masked_fill(y > 0.5, 0.0),
    "masked_fill_": lambda y: y.clone().masked_fill_(y > 0.5, 0.0),
    "clamp": lambda y: y.clamp(-0.5, 0.5),
    "clamp_min": lambda y: y.clamp_min(0.0),
    "power": lambda y: y**3,
    "absolute": torch.abs,
    "times a comparison": lambda y: y * (y > 0.1),
    "softsign": F.softsign,
    "hardshrink": F.hardshrink,
    "addcmul": lambda y: torch.addcmul(y, y, y),
    "maximum of zeros": lambda y: torch.maximum(y, torch.zeros_like(y)),
    "sum of two": lambda y: y + torch.tanh(y),
}


@pytest.mark.parametrize("name", ZERO_FORMS)
def test_forms_that_keep_zeros(name):
    net = middle(lambda s, x: ZERO_FORMS[name](s.a(x)), a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [1, 2]))
    assert shapes(net, "a", "head") == [(6, 8), (4, 6)]


LOUD_FORMS = {
    "where": lambda y: torch.where(y > 0, y, 1.0),
    "masked_fill": lambda y: y.masked_fill(y > -0.5, 0.3),
    "clamp": lambda y: y.clamp(0.1, 0.5),
    "exponential": torch.exp,
    "new": lambda y: y + y.new_ones(1),
}


@pytest.mark.parametrize("name", LOUD_FORMS)
def test_forms_that_break_zeros(name):
    """Exact in any case: the channel stays, as the constant it is."""
    net = middle(lambda s, x: LOUD_FORMS[name](s.a(x)), a=conv(8, 8))
    shrink(net, X, rows_off(net, "a", [1, 2]), smaller=False, constants="silence")
