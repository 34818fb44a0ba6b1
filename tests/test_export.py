"""Exported files: checked, with a free batch, or not there at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_gconv import compat, export, export_model
from nni_gconv.errors import CheckpointError, ConfigError, TraceError
from nni_gconv.export import fold_batch_norms


def group_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, image, side):
        features = self.conv(image).mean((2, 3))
        return features + self.fc(side), features


def outputs(path, *inputs):
    if path.suffix == ".pt2":
        found = torch.export.load(path).module()(*inputs)
        return list(found) if isinstance(found, tuple | list) else [found]
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    names = [i.name for i in session.get_inputs()]
    feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feed)]


@pytest.fixture(params=["onnx", "pt2"])
def suffix(request):
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
    return request.param


def test_a_torch_that_writes_no_onnx_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("nni_gconv.compat.torch_edges.version", lambda _: "2.6.0+cu124")
    with pytest.raises(ConfigError, match=r"torch 2\.7 or newer \(this is 2\.6\.0.*pip install"):
        export_model(group_net(), torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_group_convolution_with_any_batch(tmp_path, suffix):
    net = group_net()
    file = export_model(net, torch.zeros(1, 3, 8, 8), tmp_path / f"net.{suffix}")
    assert file == tmp_path / f"net.{suffix}"
    assert net.training  # left as it was found
    net.eval()
    for batch in (1, 3, 7):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(outputs(file, x)[0], net(x), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["", "image side", "side image"])
def test_several_inputs_and_outputs(tmp_path, suffix, order):
    net = TwoInputs().eval()
    example = {"image": torch.zeros(1, 3, 8, 8), "side": torch.zeros(1, 6)}
    given = {name: example[name] for name in order.split()} or tuple(example.values())
    file = export_model(net, given, tmp_path / f"net.{suffix}")
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 6)
    if order and suffix == "pt2":
        found = torch.export.load(file).module()(image=x, side=y)
    else:
        found = outputs(file, *([y, x] if order.startswith("side") else [x, y]))
    for got, expected in zip(found, net(x, y), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


class Nested(nn.Module):
    """Tensors in a dict, class numbers, a scale without dimensions, a plain number; a dict out."""

    def __init__(self):
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 4, 3), nn.Embedding(10, 4)

    def forward(self, images, labels, scale, times):
        features = self.conv(images["left"]) - self.conv(images["right"][0]) * scale
        return {"sum": features.mean((2, 3)) + times * self.table(labels), "parts": [features]}


@pytest.mark.slow
def test_nested_inputs_and_outputs(tmp_path, suffix):
    net = Nested().eval()
    image = torch.zeros(1, 3, 8, 8)
    images = {"left": image, "right": [image]}
    example = (images, torch.tensor([3]), torch.tensor(2.0), 0.5)
    file = export_model(net, example, tmp_path / f"net.{suffix}")
    left, right = torch.randn(2, 5, 3, 8, 8)
    labels, scale = torch.arange(5), torch.tensor(3.0)
    expected = net({"left": left, "right": [right]}, labels, scale, 0.5)
    if suffix == "pt2":
        got = torch.export.load(file).module()({"left": left, "right": [right]}, labels, scale, 0.5)
        found = [got["sum"], got["parts"][0]]
    else:
        found = outputs(file, left, right, labels, scale)
    assert torch.allclose(found[0], expected["sum"], atol=1e-5)
    assert torch.allclose(found[1], expected["parts"][0], atol=1e-5)


class ByBatch(nn.Module):
    def forward(self, x):
        return x if x.shape[0] < 3 else 2 * x


@pytest.mark.slow
def test_a_file_that_holds_its_batch_is_not_kept(tmp_path, suffix):
    with pytest.raises(CheckpointError, match=rf"^net\.{suffix}"):
        export_model(ByBatch(), torch.zeros(1, 3), tmp_path / f"net.{suffix}")
    assert list(tmp_path.iterdir()) == []


class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize(
    ("net", "example", "said"),
    [
        (group_net(), torch.zeros(1, 4, 8, 8), "Sequential does not run .* to have 3 channels"),
        (nn.Unflatten(0, (1, 2)), torch.zeros(2, 3), "batch of 2 and 3: .*[32]"),
        (group_net(), "image", "dummy_input: holds no tensor"),
    ],
)
def test_a_model_that_does_not_run(tmp_path, suffix, net, example, said):
    with pytest.raises(ConfigError, match=said):
        export_model(net, example, tmp_path / f"net.{suffix}")


@pytest.mark.slow
def test_a_model_that_cannot_be_traced(tmp_path, suffix, capfd):
    with pytest.raises(
        TraceError, match=r"cannot trace ByValue at .*test_export\.py:\d+ in forward"
    ):
        export_model(ByValue(), torch.zeros(1, 3), tmp_path / f"net.{suffix}")
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    net, x = group_net().to(dtype), torch.zeros(1, 3, 8, 8, dtype=dtype)
    said = rf"the model is in {str(dtype)[6:]}, .*model\.float\(\) first, or write a \.pt2"
    with pytest.raises(ConfigError, match=said):
        export_model(net, x, tmp_path / "net.onnx")
    file = export_model(net, x, tmp_path / "net.pt2")
    with torch.no_grad():
        assert outputs(file, x)[0].dtype == net.eval()(x).dtype == dtype
    with pytest.raises(ConfigError, match="does not run on dummy_input"):
        export_model(net, x.to(torch.float32), tmp_path / "mixed.pt2")


@pytest.mark.parametrize("name", ["net.pth", "net", "net.ONNX", "net.pt"])
def test_an_unknown_suffix(tmp_path, name):
    with pytest.raises(ConfigError, match=r"has no known suffix \(allowed: .onnx, .pt2\)"):
        export_model(group_net(), torch.zeros(1, 3, 8, 8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_gives_other_numbers_is_not_kept(tmp_path, suffix, monkeypatch):
    real = compat.export_onnx if suffix == "onnx" else compat.save_exported_program

    def spoiled(model, *args):
        other = group_net()
        nn.init.normal_(other[7].bias)
        real(other.eval(), *args)

    name = "export_onnx" if suffix == "onnx" else "save_exported_program"
    monkeypatch.setattr(compat, name, spoiled)
    file = tmp_path / f"net.{suffix}"
    with pytest.raises(CheckpointError, match=r"output 0 differs from the model's by .* not kept"):
        export_model(group_net(), torch.zeros(1, 3, 8, 8), file)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    file = tmp_path / "net.pt2"
    file.write_bytes(b"before")

    def broken(*_):
        raise RuntimeError("no\nsuch operator")

    monkeypatch.setattr(compat, "save_exported_program", broken)
    with pytest.raises(CheckpointError, match=r"net\.pt2 cannot be written or read back: no$"):
        export_model(group_net(), torch.zeros(1, 3, 8, 8), file)
    assert file.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize(
    ("got", "said"),
    [
        ([torch.zeros(2, 3)], "1 outputs, the model has 2"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], "output 1 differs from the model's by inf"),
        ([torch.zeros(2, 3), torch.full((2, 3), torch.nan)], "output 1 differs .* by nan"),
        ([torch.zeros(2, 3), torch.full((2, 3), 2.001)], "output 1 differs .* by 5.0e-04"),
    ],
)
def test_what_counts_as_different(tmp_path, got, said):
    expected = [torch.zeros(2, 3), torch.full((2, 3), 2.0)]
    export._compare(expected, [torch.zeros(2, 3), expected[1] + 1e-5], tmp_path)
    with pytest.raises(CheckpointError, match=said):
        export._compare(expected, got, tmp_path)


# -- batch norms ---------------------------------------------------------------------------------


def norms(count):
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[count](4)


def randomised(net):
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.eval()


class Standardised(nn.Conv2d):
    """Applies what it makes of its weight."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Called(nn.Module):
    """What is called: names of layers in order, each fed by the one before."""

    def __init__(self, *names, **layers):
        super().__init__()
        self.names = names
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class Forked(Called):
    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


CONV, NORM, IMAGE = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (1, 3, 8, 8)
FOLDED = {
    "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3), norms(1)), (1, 3, 8)),
    "conv2d": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False, padding=1), norms(2)), IMAGE),
    "conv3d": (nn.Sequential(nn.Conv3d(3, 4, 3), norms(3)), (1, 3, 4, 4, 4)),
    "groups": (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), norms(2)), (1, 2, 8, 8)),
    "circular": (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), NORM),
        IMAGE,
    ),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), norms(2)), IMAGE),
    "linear": (nn.Sequential(nn.Linear(3, 4), norms(1)), (2, 3)),
    "no affine": (nn.Sequential(CONV, nn.BatchNorm2d(4, affine=False)), IMAGE),
}
LEFT = {
    "transposed groups": (nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), NORM), (1, 4, 8, 8)),
    "linear over rows": (nn.Sequential(nn.Linear(3, 4), norms(1)), (1, 4, 3)),
    "no statistics": (nn.Sequential(CONV, nn.BatchNorm2d(4, track_running_stats=False)), IMAGE),
    "norm first": (nn.Sequential(nn.BatchNorm2d(3), CONV), IMAGE),
    "activation between": (nn.Sequential(CONV, nn.ReLU(), NORM), IMAGE),
    "read twice": (Forked(conv=CONV, norm=NORM), IMAGE),
    "norm twice": (Called("conv", "norm", "norm", conv=CONV, norm=NORM), IMAGE),
    "conv twice": (
        Called("conv", "norm", "conv", conv=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3)), IMAGE
    ),
    "two names": (Called("again", "norm", conv=CONV, again=CONV, norm=NORM), IMAGE),
    "weight made": (nn.Sequential(Standardised(3, 4, 3), NORM), IMAGE),
    "weight norm": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), NORM), IMAGE
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*FOLDED, *LEFT])
def test_norms_are_folded_where_that_is_exact(case):
    net, shape = (FOLDED | LEFT)[case]
    net = randomised(net).double()
    x = torch.randn(3, *shape[1:], dtype=torch.float64)
    folded = fold_batch_norms(net, torch.zeros(shape, dtype=torch.float64))
    with torch.no_grad():
        assert torch.allclose(folded(x), net(x), rtol=1e-12, atol=1e-12)
    left = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert bool(left) == (case in LEFT)


@pytest.mark.slow
def test_a_folded_file_is_that_of_the_model(tmp_path, suffix):
    net = randomised(group_net())
    file = export_model(net, torch.zeros(1, 3, 8, 8), tmp_path / f"net.{suffix}", fold_bn=True)
    assert isinstance(net[1], nn.BatchNorm2d)
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(outputs(file, x)[0], net(x), atol=1e-5)
    plain = export_model(net, torch.zeros(1, 3, 8, 8), tmp_path / f"plain.{suffix}")
    if suffix == "pt2":
        assert "batch_norm" in str(torch.export.load(plain).graph)
        assert "batch_norm" not in str(torch.export.load(file).graph)


@pytest.mark.slow
def test_a_wrong_fold_is_not_kept(tmp_path, suffix, monkeypatch):
    """The file is compared with the model given, not with its folded copy."""
    monkeypatch.setattr(export, "fold_batch_norms", lambda model, _: model[0])
    with pytest.raises(CheckpointError, match="not kept"):
        export_model(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1.0)),
            torch.zeros(1, 3, 8, 8), tmp_path / f"net.{suffix}", fold_bn=True,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
