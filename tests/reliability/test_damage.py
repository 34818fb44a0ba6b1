"""Flipped bits and cut ends in every file of a finished trial: each ends right, or in one line.

NNI_GCONV_EXAMPLES: how many flips and cuts of each file are tried (default 12; 0 in it: all, which
is every 97th bit).
"""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from damage import EXAMPLES, FINAL, RECIPE, numbers, sums, trial
from torch import nn

from nni_gconv.artefact import load_compact, save_compact
from nni_gconv.errors import NniGconvError
from nni_gconv.graph.masks import load_masks
from nni_gconv.recipe import load_recipe
from nni_gconv.recipe.folder import TrialFolder
from nni_gconv.report import collect
from nni_gconv.training.checkpoint import load_checkpoint, save_checkpoint
from nni_gconv.training.distributed import Distributed

COUNT = EXAMPLES or 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished trial, its sums and its numbers."""
    folder = tmp_path_factory.mktemp("trials") / "whole"
    trial(folder)
    return folder, sums(folder), numbers(folder)


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "trial")
    return tmp_path / "trial"


FILES = [
    *(f"{name}.safetensors" for name in FINAL),
    "train/checkpoint.pt",
    "sparsify/checkpoint.pt",
    "finetune/checkpoint.pt",
    "stages.json",
    "recipe.yml",
    "result.json",
    "metrics.jsonl",
]


def damaged(data: bytes, seed: object, count: int):
    """Yield copies with one bit flipped (every 97th, a sample of them) or the end cut off."""
    draw = random.Random(str(seed))
    bits = range(draw.randrange(97), 8 * len(data), 97)
    for bit in draw.sample(bits, min(count, len(bits))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
    for _ in range(max(1, count // 8)):
        yield data[: draw.randrange(len(data))]


def one_line(error: Exception, *names: str) -> None:
    assert len(str(error)) < 900
    assert "\n" not in str(error).strip()
    assert any(name in str(error) for name in names), error


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_or_harmless(whole, copied, name):
    folder, right, values = whole
    recipe, alone = load_recipe(RECIPE), Distributed.from_environment("cpu")
    data = (folder / name).read_bytes()
    harmless = told = 0
    full = max(4, COUNT // 20)  # whole runs where the folder is taken as it is
    for changed in damaged(data, name, COUNT):
        (copied / name).write_bytes(changed)
        try:
            with TrialFolder(copied, recipe, alone):
                pass
            harmless += 1
            if harmless <= full:
                trial(copied)
                assert sums(copied) == right
                assert numbers(copied) == values
        except NniGconvError as error:
            one_line(error, name)
            told += 1
        (copied / name).write_bytes(data)
    assert harmless + told >= min(COUNT, 8 * len(data) // 97)
    if name.endswith((".safetensors", ".pt")):
        assert harmless == 0


@pytest.mark.parametrize("name", ["result.json", "stages.json", "metrics.jsonl", "recipe.yml",
                                  "compact.safetensors"])  # fmt: skip
def test_a_report_of_damaged_files_is_one_or_says_why(whole, copied, name):
    data = (whole[0] / name).read_bytes()
    for changed in damaged(data, ("report", name), COUNT):
        (copied / name).write_bytes(changed)
        try:
            collect(copied)
        except NniGconvError as error:
            one_line(error, name, str(copied))
        (copied / name).write_bytes(data)


def test_a_small_model_loads_as_it_was_or_not_at_all(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    file = save_compact(model, tmp_path / "m.safetensors", recipe={"model": {"name": "resnet8"}})
    data, right = file.read_bytes(), model.state_dict()
    for changed in damaged(data, "compact", 10 * COUNT):
        file.write_bytes(changed)
        try:
            loaded = load_compact(
                file,
                lambda: nn.Sequential(
                    nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 2, 1)
                ),
            ).state_dict()
        except NniGconvError as error:
            one_line(error, file.name)
            continue
        assert all(torch.equal(loaded[key], right[key]) for key in right)


def test_a_checkpoint_loads_as_it_was_or_not_at_all(tmp_path):
    file = tmp_path / "checkpoint.pt"
    payload = {"a": torch.randn(40), "b": {"c": [1, 2.5, "x"]}}
    save_checkpoint(file, payload)
    data = file.read_bytes()
    for changed in damaged(data, "checkpoint", 10 * COUNT):
        file.write_bytes(changed)
        try:
            loaded = load_checkpoint(file)
        except NniGconvError as error:
            one_line(error, file.name)
            continue
        assert torch.equal(loaded["a"], payload["a"])
        assert loaded["b"] == payload["b"]


def test_damaged_masks_are_told(whole, tmp_path):
    data = (whole[0] / "masks.safetensors").read_bytes()
    for changed in damaged(data, "masks", COUNT):
        (tmp_path / "m.safetensors").write_bytes(changed)
        try:
            load_masks(tmp_path / "m.safetensors")
        except NniGconvError as error:
            one_line(error, "m.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"modules": 3},
        {"modules": {"0": {}}},
        {"modules": {"0": {"type": "Conv2d", "attrs": {"forward": 1}, "tensors": {}}}},
        {"modules": {"0": {"type": "Conv2d", "attrs": {}, "tensors": {"weight": ["x"]}}}},
        {"modules": {"0": {"type": "Conv2d", "attrs": {}, "tensors": {"weight": [-1]}}}},
        {"gathers": {"0": 3}},
        {"blocks": {"0": 3}},
        {"gathers": []},
    ],
)
def test_a_plan_made_by_somebody_else_is_one_line(tmp_path, monkeypatch, change):
    """The sums of such a file are right: whoever wrote the plan wrote them too."""
    from nni_gconv.artefact import files

    plan = files.plan_of(nn.Sequential(nn.Conv2d(1, 3, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(files, "plan_of", lambda _: {**plan, **change})
        file = save_compact(nn.Sequential(nn.Conv2d(1, 3, 3)), tmp_path / "m.safetensors")
    with pytest.raises(NniGconvError) as error:
        load_compact(file, lambda: nn.Sequential(nn.Conv2d(1, 9, 3)))
    assert "\n" not in str(error.value)
