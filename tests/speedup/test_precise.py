"""Copies that run in float64: what they give, what they share, what they hold at a time."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.speedup import precise
from nni_gconv.speedup.precise import PreciseModel, mask_parameters


class Around(nn.Module):
    """Runs one module on the input, and asks its weights for their type and shape."""

    def __init__(self, module):
        super().__init__()
        self.inner = module

    def forward(self, x):
        given = next(self.inner.parameters())
        assert given.shape[0] > 1
        result = self.inner(x.to(given.dtype))
        return result[0] if isinstance(result, tuple) else result


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.there, self.back = nn.Linear(6, 4, bias=False), nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return self.there(x) @ self.there.weight @ self.back.T.clone()


class Unasked(nn.Module):
    """Calls an operator past what torch asks of functions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        with torch._C.DisableTorchFunction():
            return self.layer(x)


def _parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))


NETS = {
    "convolution": (lambda: nn.Conv1d(5, 4, 3), (2, 5, 6)),
    "tied": (Tied, (2, 6)),
    "lstm": (lambda: nn.LSTM(6, 4, num_layers=2), (3, 2, 6)),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (2, 3, 6)),
    "parametrized": (_parametrized, (2, 6)),
    "scripted": (lambda: torch.jit.script(nn.Linear(6, 4)), (2, 6)),
    "unasked": (Unasked, (2, 6)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:RNN module weights")
def test_it_gives_what_the_model_gives_in_float64(monkeypatch, kind, dtype):
    torch.manual_seed(0)
    build, shape = NETS[kind]
    net = Around(build()).to(dtype).eval()
    monkeypatch.setattr(precise, "LARGE", 12)
    names = [name for name, p in net.named_parameters() if p.dim() > 1]
    if kind != "scripted":
        assert sum(net.get_parameter(name).numel() >= 12 for name in names)
    masks = {name: torch.rand(net.get_parameter(name).shape) > 0.3 for name in names}
    aliases = {name: (name,) for name in names}
    if kind == "scripted":  # a parameter of it cannot be exchanged
        masks = {}
    expected = copy.deepcopy(net).double()
    mask_parameters(expected, masks, aliases)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    copied = PreciseModel(net)
    copied.mask(masks, aliases)
    copied.module.eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        want = expected(x)
        if kind == "unasked" and dtype != torch.float64:
            with copied.reading(), pytest.raises(RuntimeError, match="dtype"):
                copied.module(x)
            assert copied.unshare()
            assert not copied.unshare()
        with copied.reading():
            got = copied.module(x)
    assert got.dtype == torch.float64
    if kind != "unasked" or dtype != torch.float64:  # a mask of what is float64 is there at once
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    after = net.state_dict()
    assert all(
        torch.equal(after[name], t) and after[name].dtype == dtype for name, t in before.items()
    )


def test_what_is_shared(monkeypatch):
    monkeypatch.setattr(precise, "LARGE", 12)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.BatchNorm1d(20))
    first, second, norm = PreciseModel(net).module
    assert first.weight is net[0].weight
    assert second.weight.dtype == torch.float64
    assert first.bias.dtype == norm.weight.dtype == torch.float64  # a plan may add to it
    whole = PreciseModel(net, {"0.weight"})
    assert whole.module[0].weight.dtype == torch.float64
    whole.to(torch.float32)
    assert {p.dtype for p in whole.module.parameters()} == {torch.float32}


def _peak(run):
    """Return how many bytes more a call held at once than before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now

    def held(what):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024

    before = held("VmRSS")
    run()
    return held("VmHWM") - before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_largest_layer():
    """24 layers of 4 MiB, 96 in all: two copies in float64 would be 384."""
    width, layers = 1024, 24
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    mask = torch.ones(width, width)
    mask[::4] = 0
    masks = {str(n): {"weight": mask, "bias": mask[:, 0]} for n in range(layers - 1)}
    x = torch.zeros(1, width)
    ModelSpeedup(copy.deepcopy(net), x, masks).speedup_model()  # what a first call loads
    speedup = ModelSpeedup(net, x, masks)
    peak = _peak(speedup.speedup_model)
    assert speedup.report().difference < 1e-12
    assert peak < 3 * layers * width**2 * 4  # 212 MiB; whole copies in float64: 679
