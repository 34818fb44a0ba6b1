"""Statistics kept in a file: read by who asks for the same, refused where anything differs."""

import json
import logging
import struct

import pytest
import torch
from torch import nn

from nni_gconv import SecondOrderPruner
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.calibration import Calibration, moments, read_moments
from nni_gconv.pruning.calibration.kept import gathered_once


class Twice(nn.Module):
    """The same weights in the same order, run in two ways."""

    def __init__(self, *, squared=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.squared = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), squared

    def forward(self, x):
        x = self.first(x).relu()
        return self.second(x * x if self.squared else x)


def images(seed=0):
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gathers(monkeypatch):
    """How often images are looked at."""
    counted = []
    gather = moments._Pass.gather

    def counting(self):
        counted.append(1)
        return gather(self)

    monkeypatch.setattr(moments._Pass, "gather", counting)
    return counted


def asked(folder, net=None, x=None, **options):
    calibration = Calibration(images() if x is None else x, keep_in=folder)
    return read_moments(Twice() if net is None else net, calibration, **options)


def test_what_is_read_is_what_was_gathered_to_the_last_bit(tmp_path, gathers):
    fresh = read_moments(Twice(), Calibration(images()))
    first, second = asked(tmp_path), asked(tmp_path)
    assert len(gathers) == 2
    assert list(first) == list(second) == ["first.weight", "second.weight"]
    for name in fresh:
        assert torch.equal(fresh[name], first[name])
        assert torch.equal(first[name], second[name])
        assert torch.equal(second[name], second[name].mT)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_anything_else_is_gathered_anew(tmp_path, gathers):
    asked(tmp_path)
    other = Twice()
    with torch.no_grad():
        other.second.bias[0] += 1
    asked(tmp_path, net=other)
    asked(tmp_path, net=Twice(squared=True))
    asked(tmp_path, x=images(1))
    asked(tmp_path, x=images()[:20])
    asked(tmp_path, seed=1)
    assert len(gathers) == 6
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def cut(data):
    return data[:-9]


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def of_another_key(data):
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"]["key"] = "0" * 64
    text = json.dumps(head, separators=(",", ":")).encode().ljust(length)
    return data[:8] + text + data[8 + length :]


def emptied(_):
    return b""


@pytest.mark.parametrize("damage", [cut, flipped, of_another_key, emptied])
def test_what_is_damaged_is_told_and_gathered_anew(tmp_path, gathers, caplog, damage):
    fresh = asked(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = asked(tmp_path)
    assert f"{file} is damaged" in caplog.text
    assert len(gathers) == 2
    assert all(torch.equal(again[n], fresh[n]) for n in fresh)
    asked(tmp_path)
    assert len(gathers) == 2  # mended


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"calibration: .*file: "):
        asked(tmp_path / "file")


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nni_gconv.pruning.calibration.kept.save_file", full)
    found = gathered_once(tmp_path, "a" * 64, lambda: {"x": torch.eye(2).double()[None]})
    assert found["x"].shape == (1, 2, 2)
    assert "No space left on device" in caplog.text


def test_the_same_masks_with_and_without(tmp_path, gathers):
    def masks(folder):
        net = Twice()
        pruner = SecondOrderPruner(
            net, [{"op_names": ["first"], "sparse_ratio": 0.5}],
            calibration=Calibration(images(), keep_in=folder), dummy_input=images()[:1],
        )  # fmt: skip
        return pruner.compress()[1]["first"]["bias"]

    assert torch.equal(masks(None), masks(tmp_path))
    assert torch.equal(masks(None), masks(tmp_path))
    assert len(gathers) == 3


def test_how_much_memory_it_takes_is_said_before(caplog):
    with caplog.at_level(logging.INFO):
        read_moments(Twice(), Calibration(images()))
    assert "24 images in batches of 24; sums of 2 layers take 0.00 GiB (second.weight the most" in (
        caplog.text
    )
