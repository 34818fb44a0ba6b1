"""Code runs only from what a person's own recipe or command names."""

import json
import os
import sys

import pytest
import torch
from tiny_recipes import tiny
from torch import nn

from nni_gconv import save_compact
from nni_gconv.cli import main
from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks.preflight import preflight
from nni_gconv.own_code import NO_IMPORT, code_names, import_class, import_constructor, names_code
from nni_gconv.recipe import run, run_recipe

NETS = """
import functools
import pathlib
import torch
from torch import nn
pathlib.Path("imported").touch()
def called(function):
    @functools.wraps(function)
    def inner(*args, **options):
        pathlib.Path("called").touch()
        return function(*args, **options)
    return inner
class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))
    @classmethod
    def wide(cls): return cls(20)
def plain(num_classes=10): return Net(num_classes)
def annotated(num_classes: int = 10) -> nn.Module: return Net(num_classes)
@called
def number() -> int: return 3
@called
def wrapped(): return Net()
def unresolved() -> "NotThere": return Net()
partial = functools.partial(Net, 5)
partial_of_other = functools.partial(print, "x")
other = print
from os.path import join
constant = 3
class Thing: pass
class Loud(nn.Module):
    input_size = (1, 8, 8)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(NO_IMPORT, "")
    (tmp_path / "own_nets.py").write_text(NETS)
    yield tmp_path
    sys.modules.pop("own_nets", None)


@pytest.mark.parametrize("name", ["Net", "Net.wide", "plain", "annotated", "wrapped", "unresolved",
                                  "partial"])  # fmt: skip
def test_what_makes_a_module_is_taken(nets, name):
    assert isinstance(import_constructor(f"own_nets:{name}", nn.Module, "model.name")(), nn.Module)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("own_nets:number", "returns a int"),
        ("own_nets:other", "not known to return a Module"),
        ("own_nets:join", "not known to return a Module"),
        ("own_nets:partial_of_other", "not known to return a Module"),
        ("own_nets:constant", "is a int"),
        ("own_nets:Thing", "the class Thing"),
        ("own_nets:Thin", "did you mean 'Thing'"),
        ("own_nets:", "not of the form"),
        ("os:system", "not known to return a Module"),
        ("subprocess:getoutput", "not known to return a Module"),
        ("torch.hub:load", "not known to return a Module"),
        ("torch:load", "not known to return a Module"),
        ("builtins:eval", "not known to return a Module"),
    ],
)
def test_what_does_not_is_refused_before_it_is_called(nets, path, words):
    with pytest.raises(ConfigError, match=words):
        import_constructor(path, nn.Module, "model.name")
    assert not (nets / "called").exists()


def test_a_class_of_ones_own(nets):
    assert import_class("own_nets:Net", nn.Module, "prune.method").__name__ == "Net"
    for name in ("plain", "Thing"):
        with pytest.raises(ConfigError, match=r"prune.method: .* not a subclass of Module"):
            import_class(f"own_nets:{name}", nn.Module, "prune.method")


def test_the_form_of_a_path():
    for text in ("a:b", "a.b:c.d", "_a:_b", "os:system"):
        assert names_code(text)
    for text in ("torchvision:resnet18", "nni:L1NormPruner", "cuda:1", "a/b:c", "a b:c", "", 3,
                 "http://x", "torchvision:a b"):  # fmt: skip
        assert not names_code(text)
    nested = {"a": [{"_name": "x:y"}], "b": {"c": "torchvision:x"}}
    assert code_names(nested) == {"a.0._name": "x:y"}


ATTACKS = [
    {"model.name": "own_nets:plain"},
    {"model": {"name": "own_nets:plain"}},
    {"prune.method": "own_nets:Net"},
    {"prune.options.criterion": "own_nets:plain"},
    {"prune.config_list.0.op_types.0": "own_nets:plain"},
    {"model.options.width": "os:system"},
]


@pytest.mark.parametrize("parameters", ATTACKS)
def test_a_tuner_names_no_code(nets, monkeypatch, parameters):
    monkeypatch.setattr(run.compat, "running_under_nni", lambda: True)
    monkeypatch.setattr(run.compat, "next_parameters", lambda: parameters)
    recipe = tiny(prune={"method": "fpgm", "config_list": [{"op_types": ["Conv2d"]}]})
    with pytest.raises(ConfigError, match="tuner's parameters name code"):
        run_recipe(recipe, output=nets / "out", quiet=True)
    assert not (nets / "imported").exists()
    assert not (nets / "out").exists()


def test_what_the_recipe_itself_names_may_be_varied(nets, monkeypatch):
    monkeypatch.setattr(run.compat, "running_under_nni", lambda: True)
    monkeypatch.setattr(run.compat, "next_parameters", lambda: {"train.epochs": 0, "seed": -1})
    with pytest.raises(ConfigError, match="seed"):  # and not "name code"
        run_recipe(tiny(model={"name": "own_nets:Net"}), output=nets / "out", quiet=True)


def test_a_file_of_weights_names_no_code(nets, capsys):
    file = save_compact(
        nn.Conv2d(1, 2, 3),
        nets / "evil.safetensors",
        recipe={"model": {"name": "own_nets:wrapped"}},
    )
    with pytest.raises(SystemExit) as ended:
        main(["export", str(file), str(nets / "a.onnx")])
    assert ended.value.code == 2
    words = capsys.readouterr().err
    assert "may not name code: give --model" in words
    assert words.count("\n") == 1
    assert not (nets / "imported").exists()


@pytest.mark.parametrize(
    "recipe", [[], {"model": 3}, {"model": {"name": 3}}, {"model": {"name": "resnet8", "bad": 1}}]
)
def test_a_damaged_recipe_in_a_file_is_one_line(nets, capsys, recipe):
    file = save_compact(nn.Conv2d(1, 2, 3), nets / "evil.safetensors", recipe=recipe)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(file), str(nets / "a.onnx")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["profile", "own_nets:Loud"],
        ["doctor", "own_nets:Loud"],
        ["run", "recipe.json"],
        ["sensitivity", "recipe.json"],
        ["search-groups", "own_nets:Loud", "--budget", "params=0.5"],
    ],
)
def test_no_import_refuses_own_code(nets, capsys, command):
    (nets / "recipe.json").write_text(json.dumps(tiny(model={"name": "own_nets:Net"})))
    with pytest.raises(SystemExit) as ended:
        main([*command, "--no-import"])
    assert ended.value.code == 2
    assert "which --no-import refuses" in capsys.readouterr().err
    assert not (nets / "imported").exists()


@pytest.mark.slow
def test_a_search_space_that_names_code_is_refused_before_the_start(nets):
    (nets / "recipe.yml").write_text(json.dumps(tiny(model={"name": "own_nets:Net"})))
    content = {
        "trialCommand": "nni-gconv run recipe.yml",
        "trialConcurrency": 1,
        "maxTrialNumber": 1,
        "tuner": {"name": "Random"},
        "trainingService": {"platform": "local"},
    }
    for value, refused in (("own_nets:Net", False), ("own_nets:plain", True)):
        space = {"model.name": {"_type": "choice", "_value": ["resnet8", value]}}
        (nets / "experiment.yml").write_text(json.dumps({**content, "searchSpace": space}))
        if refused:
            with pytest.raises(ConfigError, match="names code, which only"):
                preflight(nets / "experiment.yml")
        else:
            preflight(nets / "experiment.yml")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a second user")
def test_an_experiment_of_another_user_is_not_resumed(tmp_path):
    from nni_gconv.experiment.resume import resume_plan

    file = tmp_path / "abcdefgh" / "db" / "nni.sqlite"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    os.chown(file, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to another user"):
        resume_plan(tmp_path / "abcdefgh")


def test_weights_with_a_pickled_object_are_refused(tmp_path):
    from nni_gconv.errors import CheckpointError
    from nni_gconv.training.zoo import create_model

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError):
        create_model("resnet8", weights=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()
