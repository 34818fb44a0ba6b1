"""``doctor MODEL``: what it says of networks that can be pruned, in part or not at all."""

import json

import pytest
import torch
from commands import call

from nni_gconv.diagnose import diagnose
from nni_gconv.training.zoo import create_model

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    input_size = (3, 16, 16)

    def __init__(self, width=8, classes=10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


class ByValue(Net):
    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        if y.sum() > 0:
            y = -y
        return self.fc(y)


class Unfit(Net):
    def forward(self, x):
        return self.fc(self.conv(x))


class Spare(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)


class Silent(Net):
    input_size = None
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return "nets_of_a_user"


def test_a_network_of_the_zoo(capfd):
    code, out, err = call(capfd, "doctor", "resnet8")
    assert (code, err) == (0, "")
    found = diagnose(create_model("resnet8"), torch.zeros(1, 3, 32, 32))
    for row in found.sets:
        assert row.layers[0] in out
    assert "stays: linear (10 channels): an output of the model" in out
    assert f"0.5 of every set: {found.macs_ratio:.3f} of the MACs" in out
    assert f"no budget below {found.least_macs_ratio:.3f} of the MACs" in out


def test_as_json(capfd):
    code, out, err = call(capfd, "doctor", "resnet8", "--ratio", "0.25", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ratio"] == 0.25
    assert found["notes"] == []
    assert {row["layers"][0] for row in found["sets"]} >= {"conv1", "layer1.0.conv1", "linear"}
    assert {row["reason"] for row in found["sets"]} == {None, "an output of the model"}


def test_options_and_input(capfd):
    args = ["resnet8", "--json", "--input", "1x1x16x16", "-o", "in_channels=1", "-o", "width=0.5"]
    code, out, _ = call(capfd, "doctor", *args)
    assert code == 0
    stem = next(row for row in json.loads(out)["sets"] if row["layers"][0] == "conv1")
    assert stem["channels"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept", "free"),
    [
        ("mobilenet_v3_small", "classifier.3 (1000 channels): an output", "features.0.0"),
        ("lraspp_mobilenet_v3_large", "an output of the model", "backbone.0.0"),
        ("swin_t", "channels mixed at", "features.1.0.mlp.0"),
    ],
)
def test_torchvision(capfd, name, kept, free):
    code, out, err = call(capfd, "doctor", f"torchvision:{name}", "--input", "1x3x64x64")
    assert (code, err) == (0, "")
    table, _, lines = out.partition("└")
    assert free in table.replace("\n", "")
    assert any(line.startswith("stays: ") and kept in line for line in lines.splitlines())


def test_a_network_of_the_user(capfd, nets):
    code, out, _ = call(capfd, "doctor", f"{nets}:Net", "-o", "width=12", "--json")
    assert code == 0
    assert [row["channels"] for row in json.loads(out)["sets"]] == [12, 10]


def test_what_the_forward_does_not_use_is_said(capfd, nets):
    code, out, _ = call(capfd, "doctor", f"{nets}:Spare")
    assert code == 0
    assert "note: spare: not used by the forward" in out


@pytest.mark.parametrize(
    ("net", "more", "words"),
    [
        (
            "ByValue",
            [],
            [
                "cannot trace ByValue at ",
                ".py:20 in forward: what is run next depends on the values",
            ],
        ),
        ("Unfit", [], ["cannot trace Unfit at ", "nets_of_a_user.py:27 in forward: "]),
        ("Silent", [], ["does not say its input size"]),
        ("Net", ["--input", "1x4x16x16"], ["cannot trace Net at ", "to have 3 channels"]),
        ("Net", ["-o", "wide=3"], ["model.options: nets_of_a_user:Net: ", "'wide'"]),
        ("Nett", [], ["unknown factory in module", "did you mean 'Net'?"]),
        ("Net", ["--ratio", "1.5"], ["--ratio"]),
    ],
)
def test_a_broken_network_is_one_line(capfd, nets, net, more, words):
    code, out, err = call(capfd, "doctor", f"{nets}:{net}", *more)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("name", "said"),
    [("resnet9", "resnet9"), ("torchvision:resnet5", "did you mean 'resnet50'?")],
)
def test_an_unknown_network(capfd, name, said):
    code, out, err = call(capfd, "doctor", name)
    assert (code, out) == (2, "")
    assert said in err
