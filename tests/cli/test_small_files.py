"""``inspect`` and ``export``: what the command line does with the file of a small network."""

import json

import pytest
import torch
from commands import call

from nni_gconv import ModelSpeedup, load_compact, save_compact
from nni_gconv.artefact import read_plan
from nni_gconv.graph import Coupling
from nni_gconv.speedup import take_out
from nni_gconv.training.zoo import create_model

OPTIONS = {"width": 0.5, "in_channels": 1, "num_classes": 7}
IMAGES = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def small_net(name="resnet8", **options):
    torch.manual_seed(0)
    model = create_model(name, **options)
    images = torch.zeros(1, options.get("in_channels", 3), 32, 32)
    coupling = Coupling.trace(model, images)
    removed = coupling.empty()
    for coupled in coupling.sets:
        if coupled.reason is None:
            removed[coupled.classes[::4]] = True
    return ModelSpeedup(model, images, coupling.masks(removed)).speedup_model().eval()


@pytest.fixture(scope="module")
def model():
    return small_net(**OPTIONS)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """What a trial leaves: classes and channels come from the data, the width from the recipe."""
    recipe = {
        "name": "a-trial",
        "model": {
            "name": "resnet8", "num_classes": None, "weights": "gone.safetensors",
            "options": {"width": 0.5},
        },
        "prune": {"method": "fpgm", "budget": {"macs": 0.6}},
    }  # fmt: skip
    return save_compact(model, tmp_path_factory.mktemp("trial") / "m.safetensors", recipe=recipe)


# -- inspect -------------------------------------------------------------------------------------


def test_inspect_shows_every_layer_in_the_order_of_the_model(capfd, file, model):
    code, out, _ = call(capfd, "inspect", file)
    assert code == 0
    layers = [n for n, m in model.named_modules() if hasattr(m, "weight")]
    at = [out.index(f" {name} ") for name in layers]
    assert at == sorted(at)
    assert "out_channels=6" in out  # of 8, every fourth is gone
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert "recipe a-trial: fpgm {'macs': 0.6}" in out


def test_inspect_names_blocks_that_went(capfd, tmp_path):
    small = create_model("resnet8")
    take_out(small, "layer1.0", ["nn.ReLU"])
    code, out, _ = call(capfd, "inspect", save_compact(small, tmp_path / "m.safetensors"))
    assert code == 0
    assert "layer1.0: without its branch, what is left is nn.ReLU" in out
    assert "layer1.0.conv1" not in out


def test_inspect_as_json(capfd, file):
    code, out, _ = call(capfd, "inspect", file, "--json")
    assert code == 0
    found = json.loads(out)
    assert found == read_plan(file)
    assert found["plan"]["modules"]["linear"]["attrs"] == {"in_features": 24, "out_features": 7}


def test_inspect_without_a_recipe(capfd, tmp_path, model):
    code, out, _ = call(capfd, "inspect", save_compact(model, tmp_path / "m.safetensors"))
    assert code == 0
    assert "recipe" not in out


@pytest.mark.parametrize("command", ["inspect", "export"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file at"),
        (b"", "is damaged or no safetensors file"),
        (b"PK\x03\x04 a pickle", "is damaged or no safetensors file"),
    ],
)
def test_files_that_are_none(capfd, tmp_path, command, content, said):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    more = [tmp_path / "x.onnx"] if command == "export" else []
    code, out, err = call(capfd, command, path, *more)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


# -- export --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_builds_the_architecture_of_the_recipe(capfd, tmp_path, file, model):
    """The recipe's weights are not asked for; classes and channels are those of the plan."""
    target = tmp_path / "m.pt2"
    code, out, err = call(capfd, "export", file, target)
    assert (code, out, err) == (0, "", f"saved {target}\n")
    with torch.no_grad():
        found = torch.export.load(target).module()(IMAGES)
        assert torch.allclose(found, model(IMAGES), atol=1e-5)


@pytest.mark.slow
def test_export_to_onnx_with_folded_norms(capfd, tmp_path, file, model):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    target = tmp_path / "m.onnx"
    code, out, err = call(capfd, "export", file, target, "--fold-bn")
    assert (code, out, err) == (0, "", f"saved {target}\n")
    nodes = {node.op_type for node in onnx.load(target).graph.node}
    assert "Conv" in nodes
    assert "BatchNormalization" not in nodes
    session = onnxruntime.InferenceSession(str(target))
    found = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), model(IMAGES), atol=1e-4)


@pytest.mark.slow
def test_export_of_a_file_without_a_recipe(capfd, tmp_path, model):
    file = save_compact(model, tmp_path / "m.safetensors")
    target = tmp_path / "m.pt2"
    code, _, err = call(capfd, "export", file, target)
    assert (code, err) == (2, f"error: {file} names no architecture: give --model\n")
    code, _, err = call(capfd, "export", file, target, "--model", "resnet14")
    assert code == 2
    assert "is of another architecture" in err
    assert not target.exists()
    code, _, _ = call(capfd, "export", file, target, "--model", "resnet8", "-o", "width=0.5")
    assert code == 0
    size = torch.export.load(target).example_inputs[0][0].shape[1:]
    assert size == (1, 32, 32)


@pytest.mark.slow
def test_export_for_another_input(capfd, tmp_path, file):
    target = tmp_path / "m.pt2"
    assert call(capfd, "export", file, target, "--input", "1x1x16x24")[0] == 0
    assert torch.export.load(target).example_inputs[0][0].shape[1:] == (1, 16, 24)
    code, _, err = call(capfd, "export", file, target, "--input", "1x3x16x16")
    assert code == 2
    assert "does not run on dummy_input" in err
    assert target.is_file()  # the one before


@pytest.mark.slow
def test_export_of_a_torchvision_model(capfd, tmp_path):
    model = small_net("torchvision:squeezenet1_1", num_classes=5)
    file = save_compact(model, tmp_path / "m.safetensors")
    target = tmp_path / "m.pt2"
    name = "torchvision:squeezenet1_1"
    more = ["--model", name, "-o", "num_classes=5", "--input", "1x3x32x32"]
    code, _, err = call(capfd, "export", file, target, *more)
    assert (code, err) == (0, f"saved {target}\n")
    loaded = load_compact(file, lambda: create_model(name, num_classes=5))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(target).module()(x), loaded(x), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["m.pth"], "has no known suffix (allowed: .onnx, .pt2)"),
        (["m.pt2", "--input", "1xA"], "--input 1xA: expected positive sizes"),
        (["m.pt2", "--model", "resnet9"], "resnet9"),
        (["m.pt2", "-o", "wdth=1"], "did you mean 'width'?"),
        (["m.pt2", "-o", "width"], "expected dotted.key=value"),
    ],
)
def test_a_mistake_is_one_line(capfd, tmp_path, file, more, said):
    code, out, err = call(capfd, "export", file, tmp_path / more[0], *more[1:])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


# -- optimize ------------------------------------------------------------------------------------


def test_optimize_writes_forms_and_leaves_the_weights(capfd, tmp_path, file, model):
    target = tmp_path / "fast.safetensors"
    before = file.read_bytes()
    options = ("--output", target, "--seconds", "0", "--batch", "2", "--input", "1x1x8x8")
    code, out, err = call(capfd, "optimize", file, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["measured"]["batch"] == 2
    assert report["difference"] < 1e-9
    assert report["networks"][0]["name"] == "as it was"
    assert "timing the layers" in err
    assert file.read_bytes() == before
    plan = read_plan(target)
    assert plan["plan"]["forms"]["layers"] or report["chosen"] == "as it was"
    assert plan["recipe"] == read_plan(file)["recipe"]

    def architecture():
        return create_model("resnet8", **OPTIONS)

    small = load_compact(target, architecture, optimized=False)
    fast = load_compact(target, architecture)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(small(x), model(x))
        assert torch.allclose(fast(x), model(x), atol=1e-5)
    code, out, err = call(capfd, "optimize", target, "--seconds", "0", "--input", "1x1x8x8")
    assert code == 0, err
    for word in ("layer1.0.conv1", "as it was", "batch 1"):
        assert word in out


def test_optimize_without_a_file(capfd, tmp_path):
    code, _, err = call(capfd, "optimize", tmp_path / "none.safetensors")
    assert code == 2
    assert err.startswith("error: no file at")
