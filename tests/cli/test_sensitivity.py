"""``nni-gconv sensitivity``: the library's analysis of a recipe's network, from a command line."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from commands import call
from safetensors.torch import load_file

from nni_gconv import sensitivity
from nni_gconv.cli.networks.sensitivity import parse_ratios
from nni_gconv.errors import ConfigError
from nni_gconv.recipe.load import load_recipe
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.zoo import create_model

RECIPE = {
    "name": "tiny",
    "model": {"name": "resnet8", "options": {"width": 0.25}},
    "data": {"name": "digits", "batch_size": 32, "train_size": 200, "test_size": 20},
    "train": {"epochs": 2},
    "prune": {
        "method": "gconv",
        "config_list": [{"op_names_re": [r"layer\d\.0\.conv1"], "num_groups": 2}],
    },
    "report": {"latency": None},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


@pytest.mark.slow
def test_a_recipe_is_trained_measured_and_gone_on_with(capsys, recipe):
    asked = (recipe, "--criterion", "gamma", "--ratios", "0,0.5", "--tolerance", "0.3", "--json")
    code, out, err = call(capsys, "sensitivity", *asked)
    assert code == 0, err
    assert "train 2/2" in err
    assert "6 points done" in err
    folder = recipe.parent / "runs/tiny/sensitivity"
    names = ["curves.csv", "curves.png", "prune.yml", "scores.jsonl"]
    assert [f.name for f in sorted((folder / "gamma").glob("[a-z]*"))] == names
    found = json.loads(out)
    assert [s["layers"] for s in found["sets"]] == [[f"layer{i}.0.conv1"] for i in (1, 2, 3)]

    data = DataSettings(**RECIPE["data"])
    model = create_model("resnet8", in_channels=1, width=0.25)
    model.load_state_dict(load_file(folder / "dense.safetensors"))
    loaders = make_loaders(load_data(data), data, seed=0, device="cpu")
    config_list = [{"op_names_re": [r"layer\d\.0\.conv1"]}]
    expected = sensitivity(
        model, torch.zeros(1, 1, 8, 8), loaders.val, config_list,
        criterion="gamma", ratios=[0, 0.5], tolerance=0.3,
    )  # fmt: skip
    assert found == json.loads(json.dumps(expected.to_dict()))
    section = yaml.safe_load((folder / "gamma/prune.yml").read_text())["prune"]
    assert section["config_list"] == expected.config_list(0.3)

    # A recipe with that section is run in the recipe's own folder, which is still free.
    pruned = load_recipe({**RECIPE, "prune": section})
    assert pruned.prune.method == "slimming"
    assert not (folder.parent / "recipe.yml").exists()

    before = (folder / "gamma/scores.jsonl").read_bytes()
    code, again, err = call(capsys, "sensitivity", *asked)
    assert (code, again) == (0, out)
    assert not any(line.startswith("train") for line in err.splitlines())
    assert (folder / "gamma/scores.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_model_with_weights_and_data(capsys, tmp_path):
    torch.save(create_model("resnet8", in_channels=1).state_dict(), tmp_path / "weights.pt")
    code, out, err = call(
        capsys, "sensitivity", "resnet8", "-o", f"model.weights={tmp_path}/weights.pt",
        "-o", "data.name=digits",
        "-o", "data.train_size=100", "--ratios", "0.5", "--criterion", "fpgm", "--option",
        "distance=cosine", "--output", tmp_path / "here", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    assert "layer1.0.conv1" in out
    assert "fpgm: dense" in out
    assert [line.split()[0] for line in err.splitlines() if "not pruned" not in line] == [
        "saved"
    ] * 3
    assert "distance: cosine" in (tmp_path / "here/fpgm/prune.yml").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tiny.yml", "--criterion", "gama"], "did you mean 'gamma'"),
        (["tiny.yml", "--criterion", "fpgm", "--option", "distanse=l1"], "did you mean 'distance'"),
        (["tiny.yml", "--ratios", "0-1"], "--ratios 0-1: expected first:last:step"),
        (["tiny.yml", "--ratios", "0.5:0.1:0.1"], "no step leads from 0.5 to 0.1"),
        (["tiny.yml", "--ratios", "0:1:0"], "expected first:last:step"),
        (["tiny.yml", "--ratios", "0.5,2"], "numbers from 0 to 1"),
        (["tiny.yml", "--option", "coupling"], "--option coupling: expected dotted.key=value"),
        (["tiny.yml", "-o", "train=null"], "give model.weights, or a train section"),
        (["tny.yml"], "nearest: tiny.yml"),
        (["resnet8"], "resnet8: on which images?"),
        (["resnet8", "-o", "data.name=digits"], "give model.weights or a train section"),
        (
            ["tiny.yml", "-o", "train=null", "-o", "model.weights={file: x.pt, head: new}"],
            "nothing to measure: add a train section for its new head",
        ),
        (["resnet8", "-o", "data.name=digit", "-o", "train.epochs=1"], "digit"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, recipe, args, words):
    code, out, err = call(capsys, "sensitivity", *args, "-o", "model.options.width=0.25")
    assert (code, out) == (2, "")
    *told, error = err.splitlines()
    assert all(": digits: " in line for line in told)  # what the images are; nothing was trained
    assert error.startswith("error: ")
    assert words in error


def test_ratios_are_read():
    assert parse_ratios("0:0.95:0.05") == [i / 20 for i in range(20)]
    assert parse_ratios("0:1:0.4") == [0, 0.4, 0.8]
    assert parse_ratios("0.5:0.5:1") == [0.5]
    assert parse_ratios(" 0.1, 0.3") == [0.1, 0.3]
    with pytest.raises(ConfigError):
        parse_ratios("")


def test_an_interruption_says_what_is_kept_and_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    words = ["sensitivity", "resnet8", "-o", "data.name=digits", "--output", str(tmp_path / "a b")]
    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    monkeypatch.setattr("nni_gconv.analysis.trial_sensitivity", interrupt)
    monkeypatch.setattr("sys.argv", ["nni-gconv", *words])
    code, _, told = call(capsys, *words)
    assert code == 130
    assert "what was finished is kept; go on with: nni-gconv sensitivity resnet8" in told
    assert f"--output '{tmp_path / 'a b'}'" in told
