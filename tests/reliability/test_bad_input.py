"""Recipes, overrides, config_lists, command lines and calls that are wrong in one place: one line.

The recipes are made from the schema: for every key, values of every wrong kind, and names one
letter off.
"""

from __future__ import annotations

import copy
import math
import random
from typing import get_origin

import pytest
import torch
import yaml
from damage import EXAMPLES, RECIPE
from pydantic import BaseModel
from tiny_recipes import tiny
from torch import nn

import nni_gconv
from nni_gconv.cli import main
from nni_gconv.errors import NniGconvError
from nni_gconv.recipe import load_recipe, run_recipe
from nni_gconv.recipe.schema import Recipe

WRONG = {
    "text": "abc",
    "empty": "",
    "list": ["x", ["y"]],
    "map": {"no": {"such": "key"}},
    "nan": math.nan,
    "inf": -math.inf,
    "huge": 10**40,
    "negative": -7,
    "half": 0.1234567,
    "bool": True,
    "null": None,
    "zero": 0,
}


def leaves(model: type[BaseModel], path: str = ""):
    """Yield the dotted key of every field of the schema, with its sections."""
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        yield key
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in (k for k in kinds if get_origin(k) is None and isinstance(k, type)):
            if issubclass(kind, BaseModel):
                yield from leaves(kind, key)


KEYS = list(leaves(Recipe))


def test_every_key_with_every_wrong_value_is_taken_or_one_line(monkeypatch):
    refused = 0
    for key in KEYS:
        for name, value in WRONG.items():
            try:
                load_recipe(copy.deepcopy(RECIPE), {key: copy.deepcopy(value)})
            except NniGconvError as error:
                assert "\n" not in str(error), (key, name)
                assert key.split(".")[0] in str(error), (key, name, error)
                assert len(str(error)) < 1200
                refused += 1
            else:
                assert name not in ("nan", "inf", "huge"), (key, name)
    assert refused >= 6 * len(KEYS)


def test_every_key_one_letter_off_names_the_right_one():
    for key in KEYS:
        with pytest.raises(NniGconvError) as error:
            load_recipe(copy.deepcopy(RECIPE), {f"{key}x": 1})
        last = key.rsplit(".", 1)[-1]
        assert "unknown key" in str(error.value), key
        assert last in str(error.value)


DOCUMENTS = [
    "",
    "- a",
    "a: [",
    "{" * 3000,
    "a: " + "[" * 200 + "]" * 200,
    "model: {name: resnet8}\nmodel: {name: resnet20}",
    "seed: !!int abc",
    "seed: 2024-01-01",
    "seed: !!timestamp 2024-01-01",
    "seed: !!python/object/apply:os.system [id]",
    "seed: 1e400",
    "seed: .nan",
    "seed: " + "9" * 5000,
    "seed: &a [*a]",
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "\x00",
    'name: "\\ud800"',
    "? [a, b]\n: c",
    "%YAML 9.9\n---\na: b",
    "a: b\n---\nc: d",
    "name: ../../x",
    "name: /x",
    "name: ..",
    "name: a/b",
    f"name: {'x' * 300}",
    "seed: 18446744073709551616",
    "threads: 1000000",
    "report: {latency: {batch_sizes: []}}",
    "report: {latency: {batch_sizes: [0]}}",
    "model: {name: resnet8, options: {name: x}}",
]


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
def test_documents_that_are_no_recipes(tmp_path, capsys, number):
    text = DOCUMENTS[number]
    given = yaml.safe_dump(tiny(name=None))
    keys = [line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    if keys and keys[0] in Recipe.model_fields:
        base = {k: v for k, v in tiny(name=None).items() if k not in keys}
        text = yaml.safe_dump(base) + text
    else:
        assert given
    file = tmp_path / "recipe.yml"
    file.write_text(text, encoding="utf-8")
    fails(capsys, "run", str(file), "--output", str(tmp_path / "out"), "--quiet")


def fails(capsys, *words: str) -> str:
    """Run a command that is wrong; return its one line."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr().err
    assert ended.value.code == 2, (words, said)
    assert said.startswith("error: "), (words, said)
    assert said.count("\n") == 1, (words, said)
    return said


CONFIG_LISTS = [
    [],
    [{}],
    [{"op_types": ["Conv2d"]}, 3],
    [{"op_types": "Conv2d"}],
    [{"op_types": ["Conv3dd"]}],
    [{"op_names": ["nothing"]}],
    [{"op_names_re": ["("]}],
    [{"op_types": ["Conv2d"], "sparse_ratio": 2}],
    [{"op_types": ["Conv2d"], "sparse_ratio": -1}],
    [{"op_types": ["Conv2d"], "sparse_ratio": "half"}],
    [{"op_types": ["Conv2d"], "sparse_ratio": math.nan}],
    [{"op_types": ["Conv2d"], "sparse_ratoi": 0.5}],
    [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "min_channels": -1}],
    [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "round_to": 0}],
    [{"op_types": ["Conv2d"], "sparse_ratio": None}],
    [{"op_types": ["Conv2d"], "sparse_ratio": [0.5]}],
    [{"op_types": []}],
    [{"op_types": ["Conv2d"], "target_names": ["nothing"], "sparse_ratio": 0.5}],
    [{"op_types": ["Conv2d"], "granularity": "nothing", "sparse_ratio": 0.5}],
    [{"op_types": ["Conv2d"], "max_sparse_ratio": 7, "sparse_ratio": 0.5}],
]


@pytest.mark.parametrize("number", range(len(CONFIG_LISTS)))
def test_config_lists_are_checked(number):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    with pytest.raises((NniGconvError, ValueError, TypeError)) as error:
        nni_gconv.FPGMPruner(
            net, CONFIG_LISTS[number], dummy_input=torch.zeros(1, 1, 9, 9)
        ).compress()
    assert isinstance(error.value, NniGconvError), error.value
    assert "\n" not in str(error.value)


COMMANDS = [
    ["nothing"],
    ["run"],
    ["run", "nowhere.yml"],
    ["run", "."],
    ["run", "nowhere.yml", "-o", "x"],
    ["run", "nowhere.yml", "-o", "=3"],
    ["run", "nowhere.yml", "-o", "a..b=3"],
    ["run", "nowhere.yml", "-o", "a=[1"],
    ["run", "nowhere.yml", "-o", "a=!!int x"],
    ["run", "nowhere.yml", "--gpus", "0"],
    ["run", "nowhere.yml", "--gpus", "many"],
    ["run", "nowhere.yml", "--nothing"],
    ["profile"],
    ["profile", "resnet57"],
    ["profile", "resnet8", "--input", "3x"],
    ["profile", "resnet8", "--input", "0x3x32x32"],
    ["profile", "resnet8", "--num-classes", "0"],
    ["profile", "resnet8", "--weights", "nowhere.pt"],
    ["profile", "resnet8", "-o", "width=wide"],
    ["profile", "os:system"],
    ["profile", "no.such.module:f"],
    ["export", "nowhere", "x.onnx"],
    ["export", ".", "x.onnx"],
    ["report", "nowhere"],
    ["compare", "nowhere"],
    ["inspect", "nowhere"],
    ["create", "nowhere.yml"],
    ["create", "."],
    ["resume", "nowhere"],
    ["fetch", "nowhere"],
    ["search-groups", "resnet8"],
    ["search-groups", "resnet8", "--budget", "params=2"],
    ["search-groups", "resnet8", "--budget", "x=0.5"],
    ["search-groups", "resnet8", "--budget", "params=nan"],
    ["sensitivity", "nowhere.yml"],
    ["sensitivity", "nowhere.yml", "--ratios", "2"],
    ["search-space", "nowhere"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_lines_are_checked(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, *words)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


X = torch.zeros(1, 1, 9, 9)
CALLS = {
    "no model": lambda: nni_gconv.FPGMPruner("net", [{"op_types": ["Conv2d"]}]),
    "budget of 2": lambda: nni_gconv.FPGMPruner(
        net(), [{"op_types": ["Conv2d"]}], budget={"macs": -1}, dummy_input=X
    ).compress(),
    "budget of words": lambda: nni_gconv.FPGMPruner(
        net(), [{"op_types": ["Conv2d"]}], budget={"mac": 0.5}, dummy_input=X
    ),
    "budget without input": lambda: nni_gconv.FPGMPruner(
        net(), [{"op_types": ["Conv2d"]}], budget={"macs": 0.5}
    ).compress(),
    "masks of nothing": lambda: nni_gconv.ModelSpeedup(
        net(), X, {"9": {"weight": X}}
    ).speedup_model(),
    "masks from nowhere": lambda: nni_gconv.ModelSpeedup(net(), X, "nowhere.pt"),
    "load from nowhere": lambda: nni_gconv.load_compact("nowhere", net),
    "save of nothing": lambda: nni_gconv.save_compact("net", "x.safetensors"),
    "export of nothing": lambda: nni_gconv.export_model("net", X, "x.onnx"),
    "export to nothing": lambda: nni_gconv.export_model(net(), X, "x.doc"),
    "profile of nothing": lambda: nni_gconv.profile("net", X),
    "profile of batch 0": lambda: nni_gconv.profile(net(), X[:0]),
    "recipe of nothing": lambda: run_recipe({}),
    "recipe from nowhere": lambda: run_recipe("nowhere.yml"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_checked(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NniGconvError) as error:
        CALLS[name]()
    assert "\n" not in str(error.value)


def test_many_wrong_places_at_once_are_one_line():
    draw = random.Random(0)
    for _ in range(EXAMPLES or 60):
        changes = {key: draw.choice(list(WRONG.values())) for key in draw.sample(KEYS, 3)}
        try:
            load_recipe(copy.deepcopy(RECIPE), changes)
        except NniGconvError as error:
            assert "\n" not in str(error)
