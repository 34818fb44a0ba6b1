"""Exported files: checked, with a free batch, or not there at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_gconv import compat, export, export_model
from nni_gconv.errors import CheckpointError, ConfigError


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


@pytest.mark.parametrize("keywords", [False, True])
def test_several_inputs_and_outputs(tmp_path, suffix, keywords):
    net = TwoInputs().eval()
    image, side = torch.zeros(1, 3, 8, 8), torch.zeros(1, 6)
    example = {"image": image, "side": side} if keywords else (image, side)
    file = export_model(net, example, tmp_path / f"net.{suffix}")
    if keywords and suffix == "pt2":
        return
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 6)
    for found, expected in zip(outputs(file, x, y), net(x, y), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["net.pth", "net", "net.ONNX", "net.pt"])
def test_an_unknown_suffix(tmp_path, name):
    with pytest.raises(ConfigError, match=r"has no known suffix \(allowed: .onnx, .pt2\)"):
        export_model(group_net(), torch.zeros(1, 3, 8, 8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_gives_other_numbers_is_not_kept(tmp_path, suffix, monkeypatch):
    real = compat.export_onnx if suffix == "onnx" else compat.save_exported_program

    def spoiled(model, args, kwargs, path):
        other = group_net()
        nn.init.normal_(other[7].bias)
        real(other.eval(), args, kwargs, path)

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
        raise RuntimeError("no")

    monkeypatch.setattr(compat, "save_exported_program", broken)
    with pytest.raises(RuntimeError):
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
