"""Counts against hand-computed ones, and that measuring leaves no trace."""

import json
from collections import OrderedDict

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nni_gconv.errors import ConfigError
from nni_gconv.profiling import (
    Counts,
    LatencySettings,
    compare_latency,
    count,
    measure_latency,
    profile,
)
from nni_gconv.training.zoo import create_model

FAST = {"warmup": 1, "min_runs": 3, "min_seconds": 0.0}


def macs(module, *shape):
    return count(module, torch.zeros(*shape)).macs


# --- counts -------------------------------------------------------------------------------------


def test_two_layers_by_hand():
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            relu=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(8 * 4 * 4, 10),
        )
    )
    found = profile(net, torch.zeros(5, 3, 8, 8))
    conv = 8 * (4 * 4) * (3 * 3 * 3)
    assert found.params == (8 * 27 + 8) + (128 * 10 + 10)
    assert found.macs == conv + 1280
    rows = {row.name: row for row in found.layers}
    assert list(rows) == ["conv", "relu", "flatten", "fc"]
    assert (rows["conv"].type, rows["conv"].params, rows["conv"].macs) == ("Conv2d", 224, conv)
    assert (rows["fc"].params, rows["fc"].macs, rows["fc"].calls) == (1290, 1280, 1)
    assert rows["conv"].output_shape == (5, 8, 4, 4)
    assert rows["relu"].macs == rows["relu"].params == 0


def test_grouped_depthwise_dilated():
    # output positions x kernel size x input channels of a group x filters
    assert macs(nn.Conv2d(8, 12, 3, groups=4), 1, 8, 6, 6) == 16 * 9 * 2 * 12
    assert macs(nn.Conv2d(8, 8, 3, groups=8, padding=1), 1, 8, 6, 6) == 36 * 9 * 1 * 8
    assert macs(nn.Conv2d(4, 6, 3, dilation=2, padding=2), 2, 4, 7, 5) == 35 * 9 * 4 * 6
    assert macs(nn.Conv2d(4, 6, (1, 5), stride=(2, 1)), 1, 4, 6, 9) == (3 * 5) * 5 * 4 * 6
    assert macs(nn.Conv1d(4, 6, 3), 1, 4, 10) == 8 * 3 * 4 * 6
    # a transposed convolution works once for every input position
    assert macs(nn.ConvTranspose2d(4, 6, 2, stride=2), 1, 4, 5, 5) == 25 * 4 * 4 * 6


def test_linear_over_a_sequence():
    assert count(nn.Linear(4, 6), torch.zeros(3, 7, 4)) == Counts(params=30, macs=7 * 24)


def test_matmul_in_a_forward_belongs_to_the_module_that_calls_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.inner(x) @ self.inner(x).transpose(1, 2)

    found = profile(Net(), torch.zeros(2, 3, 4))
    rows = {row.name: row for row in found.layers}
    assert (rows[""].macs, rows[""].params) == (3 * 3 * 4, 2)
    assert (rows["inner"].macs, rows["inner"].calls) == (2 * 3 * 16, 2)
    assert found.macs == 36 + 96


def test_attention_is_counted_in_eval_mode():
    # Its fused inference path would hide everything.
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    tokens = 5
    projections = tokens * 8 * (3 * 8) + tokens * 8 * 8
    attention = 2 * tokens * tokens * 8
    feed_forward = 2 * tokens * 8 * 16
    assert macs(layer, 2, tokens, 8) == projections + attention + feed_forward


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4, bias=False)
    other = nn.Linear(4, 4, bias=False)
    other.weight = layer.weight
    found = profile(nn.Sequential(layer, other, layer), torch.zeros(1, 4))
    assert (found.params, found.macs) == (16, 48)
    assert [(row.params, row.macs, row.calls) for row in found.layers] == [(16, 32, 2), (0, 16, 1)]


def test_a_layer_that_never_runs_is_shown():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    found = profile(Net(), torch.zeros(1, 2))
    assert found.params == 6 + 12
    assert found.layers[1].calls == 0
    assert found.layers[1].output_shape is None
    assert "never ran" in render(found)


@pytest.mark.parametrize("name", ["resnet8", "preresnet11", "densenet10", "condensenet86"])
def test_agrees_with_torch_and_adds_up(name):
    model, x = create_model(name), torch.zeros(2, 3, 16, 16)
    found = profile(model, x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    assert found.macs == counter.get_total_flops() // 4
    assert (found.params, found.macs) == count(model, x)
    assert found.macs == sum(row.macs for row in found.layers)
    assert found.params == sum(row.params for row in found.layers)
    assert found.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_counts_are_per_sample(batch):
    assert count(create_model("resnet8"), torch.zeros(batch, 3, 8, 8)) == count(
        create_model("resnet8"), torch.zeros(1, 3, 8, 8)
    )


# --- what is not counted ------------------------------------------------------------------------


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x.transpose(0, 1).reshape(-1)).abs()


def test_uncounted_operators():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), Spectrum())
    found = profile(net, torch.zeros(2, 3, 4, 4))
    assert found.macs == 16 * 12
    assert found.costly_uncounted == {"aten._fft_r2c": 1}
    assert found.uncounted["aten.relu"] == 1
    # views and copies are no arithmetic, convolutions are counted
    names = " ".join(found.uncounted)
    assert not any(word in names for word in ("view", "transpose", "clone", "convolution"))
    assert "_fft_r2c x1" in render(found)


def test_cheap_operators_are_no_alarm():
    for layer in (
        nn.Hardswish(inplace=True),
        nn.GELU(),
        nn.Softmax(1),
        nn.MaxPool2d(2),
        nn.PReLU(),
    ):
        net = nn.Sequential(nn.Conv2d(2, 2, 1), layer)
        found = profile(net, torch.zeros(1, 2, 4, 4))
        assert found.uncounted
        assert found.costly_uncounted == {}


# --- memory -------------------------------------------------------------------------------------


def test_memory_by_hand():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.BatchNorm1d(2))
    memory = profile(net, torch.zeros(3, 4)).memory
    assert memory.parameter_bytes == 4 * (40 + 18 + 4)
    assert memory.buffer_bytes == 4 * (2 + 2) + 8
    # the widest moment: the first layer's output and its ReLU
    assert memory.peak_activation_bytes == 2 * 3 * 8 * 4
    assert memory.method == "live tensors"
    twice = profile(net, torch.zeros(6, 4)).memory
    assert twice.peak_activation_bytes == 2 * memory.peak_activation_bytes


def test_memory_of_a_residual_sum():
    class Residual(nn.Module):
        def forward(self, x):
            y = x * 2  # alive until the end
            return torch.relu(y + 1) + y

    memory = profile(Residual(), torch.zeros(1, 256)).memory
    # y, y + 1 and relu of it at once; then y, relu and the sum
    assert memory.peak_activation_bytes == 3 * 1024


# --- inputs -------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(6, 2, bias=False)

    def forward(self, x, y, scale=1.0):
        return self.a(x) + scale * self.b(y)


def test_inputs_as_tuple_and_dict():
    x, y = torch.zeros(3, 4), torch.zeros(3, 6)
    assert count(TwoInputs(), (x, y)).macs == 8 + 12
    assert count(TwoInputs(), {"y": y, "x": x, "scale": 2.0}).macs == 8 + 12
    found = measure_latency(TwoInputs(), {"x": x, "y": y}, batch_size=7, **FAST)
    assert found.batch_size == 7


@pytest.mark.parametrize("bad", [(), ("text",), {}, torch.zeros(0, 4)])
def test_inputs_without_a_sample(bad):
    with pytest.raises(ConfigError, match="dummy_input"):
        count(nn.Linear(4, 4), bad)


# --- no trace left ------------------------------------------------------------------------------


def state_of(model):
    return (
        {name: module.training for name, module in model.named_modules()},
        {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in model.named_modules()
        },
        {name: value.clone() for name, value in model.state_dict().items()},
        [p.grad for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [p.stride() for p in model.parameters()],
    )


def same(a, b):
    return a[:2] == b[:2] and all(torch.equal(a[2][k], b[2][k]) for k in a[2]) and a[3:] == b[3:]


@pytest.mark.parametrize("measure", ["count", "profile", "latency", "channels_last"])
def test_leaves_the_model_as_found(measure):
    model = create_model("resnet8", width=0.5)
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.bn1.register_forward_hook(lambda *_: None)
    before, x = state_of(model), torch.rand(2, 3, 8, 8)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    if measure == "count":
        count(model, x)
    elif measure == "profile":
        profile(model, x, batch_sizes=(1,), **FAST)
    else:
        last = measure == "channels_last"
        measure_latency(model, x, batch_size=2, threads=2, channels_last=last, **FAST)
    assert same(before, state_of(model))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("measure", [count, profile])
def test_leaves_the_model_as_found_after_an_error(measure):
    class Broken(nn.Module):
        def forward(self, x):
            torch.rand(1)
            raise RuntimeError("stop")

    model = nn.Sequential(nn.Linear(2, 2), Broken())
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"):
        measure(model, torch.zeros(1, 2))
    assert same(before, state_of(model))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.is_grad_enabled()


# --- latency: structure only --------------------------------------------------------------------


def test_latency_structure():
    found = measure_latency(nn.Linear(4, 4), torch.zeros(1, 4), batch_size=8, threads=2, **FAST)
    assert found.runs == 3
    assert (found.batch_size, found.threads, found.device) == (8, 2, "cpu")
    assert 0 < found.best_ms <= found.p25_ms <= found.median_ms <= found.p75_ms
    assert json.loads(json.dumps(found.to_dict()))["batch_size"] == 8


def test_latency_runs_the_asked_batch_and_threads():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((tuple(x.shape), torch.get_num_threads(), self.training))
            return x

    measure_latency(Spy(), torch.zeros(3, 4), batch_size=7, threads=2, **FAST)
    assert seen == [((7, 4), 2, False)] * 4  # one to warm up


def test_channels_last_times_that_layout():
    seen = []
    conv = nn.Conv2d(4, 4, 1)
    conv.register_forward_hook(
        lambda module, args, out: seen.append(
            [t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], module.weight)]
        )
    )
    found = measure_latency(conv, torch.zeros(1, 4, 5, 5), batch_size=2, channels_last=True, **FAST)
    assert found.channels_last
    assert seen == [[True, True]] * 4


def test_comparison_runs_in_turn():
    order = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            order.append(self.name)
            return x + 1

    models = {name: Named(name) for name in ("dense", "small", "other")}
    found = compare_latency(models, torch.zeros(1, 4), batch_size=2, **FAST)
    assert order == ["dense", "small", "other"] * 4
    assert found.reference == "dense"
    assert list(found.latencies) == list(found.ratios) == ["dense", "small", "other"]
    assert found.ratios["dense"] == 1.0
    low, high = found.ratio_quartiles["small"]
    assert 0 < low <= found.ratios["small"] <= high
    json.dumps(found.to_dict())


def test_latency_settings():
    settings = LatencySettings(batch_sizes=[1, 64], threads=2)
    assert settings.batch_sizes == (1, 64)
    options = {**settings.options(), **FAST}
    assert measure_latency(nn.Linear(2, 2), torch.zeros(1, 2), batch_size=1, **options).threads == 2
    for bad in ({"threads": 0}, {"batch_sizes": [0]}, {"thread": 1}, {"min_seconds": -1}):
        with pytest.raises(ValidationError):
            LatencySettings(**bad)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"threads": 0}, {"min_runs": 0}])
def test_latency_mistakes(bad):
    with pytest.raises(ConfigError, match=f"latency.{next(iter(bad))}"):
        measure_latency(nn.Linear(2, 2), torch.zeros(1, 2), **{"batch_size": 1, **FAST, **bad})
    with pytest.raises(ConfigError, match="models is empty"):
        compare_latency({}, torch.zeros(1, 2), batch_size=1)


# --- output -------------------------------------------------------------------------------------


def render(found):
    console = Console(width=120, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(found.table("title"))
    return capture.get()


def test_table_and_dict():
    found = profile(create_model("resnet8"), torch.zeros(1, 3, 8, 8), batch_sizes=(2,), **FAST)
    text = render(found)
    for word in ("layer3.0.conv2", "title", "total", f"{found.macs:,}", "75,290", "batch 2:"):
        assert word in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["params"] == 75_290
    assert plain["layers"][0]["output_shape"] == [1, 16, 8, 8]
    assert [row["batch_size"] for row in plain["latency"]] == [2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = create_model("resnet8").cuda()
    found = profile(model, torch.zeros(4, 3, 32, 32), batch_sizes=(4,), **FAST)
    assert found.memory.method == "cuda allocator"
    # at least the input of a block, its inner activation and its output
    assert found.memory.peak_activation_bytes >= 3 * 4 * 16 * 32 * 32 * 4
    assert found.latency[0].device == torch.cuda.get_device_name()
    assert count(model, torch.zeros(1, 3, 32, 32)) == Counts(found.params, found.macs)
    pair = {"dense": model, "small": create_model("resnet8", width=0.5).cuda()}
    result = compare_latency(pair, torch.zeros(1, 3, 32, 32), batch_size=8, **FAST)
    assert result.ratios["small"] > 0
