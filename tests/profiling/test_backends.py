"""Networks as other back-ends run them: the same numbers, and one line where they cannot."""

import pytest
import torch
import torch._inductor.config
from commands import call
from torch import nn
from torch._dynamo.utils import counters

from nni_gconv.errors import ConfigError
from nni_gconv.profiling import compare_latency, on_backend, profile

FAST = {"warmup": 0, "min_runs": 2, "min_seconds": 0}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU()).eval()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_same_numbers(backend):
    pytest.importorskip(backend)
    model, x = net(), torch.randn(3, 2, 6, 6)
    made = on_backend(model, x, backend)
    with torch.no_grad():
        assert torch.allclose(made(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_the_compiler_gives_the_same_numbers(monkeypatch):
    # Else it compiles and loads, in processes of their own, a file for each kind of vectors.
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", True)
    model, x = net(), torch.randn(3, 2, 6, 6)
    made = on_backend(model, x, "compile")
    with torch.no_grad():
        assert torch.allclose(made(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_more_networks_than_the_compiler_keeps_of_a_function_are_compiled():
    """It keeps eight; further ones it would run as they are, and take their time for compiled."""
    x = torch.randn(3, 2)
    models = [nn.Linear(2, 2) for _ in range(4)]
    counters.clear()
    # Two in place of eight: each takes a second to compile.
    with torch.no_grad(), torch._dynamo.config.patch(cache_size_limit=2):
        for model in models:
            one = on_backend(model, x, "compile")
            assert torch.allclose(one(x), model(x), atol=1e-6)
            with pytest.raises(RuntimeError, match="recompile"):  # of another shape
                one(x[:2])
    assert counters["stats"]["unique_graphs"] == len(models)


@pytest.mark.slow
def test_arguments_by_name_and_several_outputs():
    pytest.importorskip("onnxruntime")

    class Two(nn.Module):
        def forward(self, a, b):
            return a + b, a * b

    x = {"a": torch.ones(2, 3), "b": torch.full((2, 3), 2.0)}
    sums, products = on_backend(Two(), x, "onnxruntime")(**x)
    assert torch.equal(sums, torch.full((2, 3), 3.0))
    assert torch.equal(products, x["b"])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_count_as_zero_and_only_there(threads):
    """Else a network whose norms have scales near zero takes three times as long."""
    pytest.importorskip("onnxruntime")
    model, x = nn.Conv2d(64, 64, 1, bias=False).eval(), torch.ones(4, 64, 32, 32)
    nn.init.constant_(model.weight, 1e-40)
    made = on_backend(model, x, "onnxruntime", threads=threads)
    with torch.no_grad():
        assert model(x).all()
        assert not made(x).any()
        assert model(x).all()


@pytest.mark.slow
def test_networks_are_compared_and_profiled_on_a_backend():
    pytest.importorskip("onnxruntime")
    models, x = {"a": net(), "b": net()}, torch.zeros(1, 2, 6, 6)
    found = compare_latency(models, x, batch_size=2, backend="onnxruntime", **FAST)
    assert {row.backend for row in found.latencies.values()} == {"onnxruntime"}
    rows = profile(net(), x, batch_sizes=(1,), backends=("eager", "onnxruntime"), **FAST).latency
    assert [row.backend for row in rows] == ["eager", "onnxruntime"]


@pytest.mark.slow
def test_mistakes(monkeypatch, capfd):
    x = torch.zeros(1, 2, 6, 6)
    with pytest.raises(ConfigError, match="onnxruntime"):
        on_backend(net(), x, "onnxruntimes")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install"):
        on_backend(net(), x, "openvino")
    monkeypatch.undo()

    class Loops(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="backend onnxruntime: cannot run Loops"):
        on_backend(Loops(), x, "onnxruntime")
    code, _, err = call(capfd, "profile", "resnet8", "--backend", "onnxruntime")
    assert code == 2
    assert "--latency" in err
