"""Networks of timm, folders that PyTorchModelHubMixin saved, and compact files in folders."""

import json
import sys

import pytest
import torch
from torch import nn

from nni_gconv import shrink
from nni_gconv.artefact import from_pretrained, push_to_hub, save_pretrained
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.own_code import names_code
from nni_gconv.training.zoo import create_model, hub, input_size

OWN = """
from torch import nn
from huggingface_hub import PyTorchModelHubMixin
class Net(nn.Module, PyTorchModelHubMixin):
    def __init__(self, width=4, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_hub_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_hub_net

    yield own_hub_net.Net
    sys.modules.pop("own_hub_net", None)


def test_a_folder_of_the_mixin_brings_its_arguments_and_weights(own, tmp_path):
    net = own(width=6, num_classes=3)
    net.save_pretrained(tmp_path / "saved")
    made = create_model("own_hub_net:Net", num_classes=10, weights=str(tmp_path / "saved"))
    assert made.head.weight.shape == (3, 6)
    for mine, theirs in zip(made.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_wrong_with_a_folder_is_said_and_no_pickle_read(own, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    torch.save(own().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors.*pickle"):
        create_model("own_hub_net:Net", weights=str(folder))
    own().save_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a mapping"):
        create_model("own_hub_net:Net", weights=str(folder))
    (folder / "config.json").write_text(json.dumps({"width": 5, "_class": "os:system"}))
    with pytest.raises(CheckpointError, match="other shapes"):
        create_model("own_hub_net:Net", weights=str(folder))


def test_a_repository_is_fetched_as_a_folder_is_read(own, tmp_path, monkeypatch):
    import huggingface_hub

    own(width=5).save_pretrained(tmp_path / "repo")
    asked = []

    def download(name, file, revision=None):
        asked.append((name, file, revision))
        return str(tmp_path / "repo" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    made = create_model("own_hub_net:Net", weights="hf-hub:me/net@v1")
    assert made.conv.out_channels == 5
    assert asked == [("me/net", "model.safetensors", "v1"), ("me/net", "config.json", "v1")]


def test_networks_of_timm():
    pytest.importorskip("timm")
    net = create_model("timm:resnet10t", num_classes=7).eval()
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert input_size("timm:resnet10t")[0] == 3
    assert not names_code("timm:resnet10t")
    with pytest.raises(ConfigError, match="did you mean 'resnet10t'"):
        create_model("timm:resnet10")
    with pytest.raises(ConfigError, match=r"timm:resnet10t: .*nothing_such"):
        create_model("timm:resnet10t", nothing_such=1)


def test_a_missing_extra_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm: pip install 'nni-gconv\[timm\]'"):
        hub.create_timm("resnet18")


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_compact_files_in_folders(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    small, _ = shrink(dense(), x, macs=0.6)
    folder = save_pretrained(small.eval(), tmp_path / "small")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "compact.safetensors"]
    with torch.no_grad():
        assert torch.equal(from_pretrained(folder, dense)(x), small(x))

    class Api:
        def create_repo(self, name, **options):
            self.made = name, options

        def upload_folder(self, repo_id, folder_path):
            self.again = from_pretrained(folder_path, dense)
            return f"https://hub/{repo_id}"

    api = Api()
    assert push_to_hub(small, "me/small", api=api) == "https://hub/me/small"
    assert api.made == ("me/small", {"private": True, "exist_ok": True})
    assert api.again[0].out_channels == small[0].out_channels
