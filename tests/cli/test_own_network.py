"""A network and images of one's own on the command line: shrink, and init."""

import json
import os
import sys

import pytest
import torch
from commands import call
from PIL import Image
from user_folders import user_folder

from nni_gconv import load_compact
from nni_gconv.artefact import read_plan
from nni_gconv.cli import main
from nni_gconv.cli.networks.pixel_scale import scaled_to_fit
from nni_gconv.cli.networks.shrink import data_settings
from nni_gconv.experiment.checks.preflight import preflight
from nni_gconv.own_code import NO_IMPORT
from nni_gconv.recipe import load_recipe
from nni_gconv.training.data import Normalize

MODULE = "my_own_net"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(NO_IMPORT, "")
    user_folder(tmp_path, MODULE)
    yield tmp_path
    sys.modules.pop(MODULE, None)


def load(file):
    sys.path.insert(0, os.fspath(file.parent))
    try:
        return load_compact(file, __import__(MODULE).Net)
    finally:
        sys.path.pop(0)


def test_shrink_with_images(home, capsys):
    code, out, err = call(
        capsys, "shrink", f"{MODULE}:Net", "--weights", "w.pt", "--data", "images/", "--macs", 0.5,
        "--out", "made/small.safetensors",
    )  # fmt: skip
    assert code == 0
    assert "shrunk by second_order" in out
    assert "test accuracy: dense 0." in out
    lines = err.splitlines()
    assert "44 train" in lines[0] or "43 train" in lines[0]
    assert [line.split()[1] for line in lines[1:6]] == [
        "trace", "check", "images", "prune", "speedup",
    ]  # fmt: skip
    small = load(home / "made" / "small.safetensors")
    assert small(torch.zeros(2, 3, 12, 12)).shape == (2, 3)
    assert small.features[0].out_channels + small.features[3].out_channels < 8 + 16
    recipe = read_plan(home / "made" / "small.safetensors")["recipe"]
    assert recipe["model"] == {"name": f"{MODULE}:Net", "options": {}, "num_classes": 3}


def test_shrink_without_images_as_json(home, capsys):
    code, out, err = call(
        capsys, "shrink", f"{MODULE}:Net", "-o", "width=12", "--params", 0.6, "--input",
        "1x3x12x12", "--keep", "features.0", "--out", "small.safetensors", "--json", "-q",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["params_ratio"] <= 0.6
    assert found["kept"]["features.0"] == "named by keep"
    assert found["file"] == "small.safetensors"
    assert (
        err.splitlines()[0]
        == "note: without --weights the network has what its constructor gives it"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--macs", "0.5"], "--input: is needed"),
        (["--macs", "0.5", "--data", "image"], "no folder image"),
        (["--data", "images"], "how small"),
        (["--macs", "0.001", "--data", "images"], "cannot be reached"),
        (["--macs", "0.5", "--data", "images", "--weights", "w.p"], "no such file of weights"),
        (["--macs", "0.5", "--data", "images", "--num-classes", "7", "--weights", "w.pt"], "head"),
        (["--macs", "0.5", "--data", "images", "--out", "small.pt"], "ends in .safetensors"),
        (["--macs", "0.5", "--data", "images", "--no-import"], "--no-import refuses"),
        (["--groups", "x.json", "--data", "images"], "x.json"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(home, capsys, arguments, words):
    before = sorted(home.rglob("*.safetensors"))
    given = ["shrink", f"{MODULE}:Net", *arguments]
    given += [] if "--out" in given else ["--out", "small.safetensors"]
    code, out, err = call(capsys, *given)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert sorted(home.rglob("*.safetensors")) == before


def test_a_pickle_is_not_read(home, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(home / "ran"),)

    torch.save({"a": Evil()}, home / "evil.pt")
    code, _, err = call(
        capsys, "shrink", f"{MODULE}:Net", "--weights", "evil.pt", "--data", "images", "--macs",
        0.5, "--out", "small.safetensors",
    )  # fmt: skip
    assert code == 2
    assert "would run code" in err
    assert not (home / "ran").exists()


@pytest.mark.slow
def test_init_writes_a_recipe_that_runs(home, capsys):
    code, _, err = call(
        capsys, "init", f"{MODULE}:Net", "--data", "images", "--weights", "w.pt", "--experiment"
    )
    assert code == 0
    assert "next: nni-gconv run recipe.yml" in err
    text = (home / "recipe.yml").read_text()
    for words in ("features.0: 8 channels", "head: an output of the model", "3x12x12"):
        assert words in text
    recipe = load_recipe("recipe.yml")
    assert recipe.train is None
    assert recipe.data.root == "images"
    code, out, err = call(
        capsys, "run", "recipe.yml", "-o", "finetune.epochs=1", "-o", "report.latency=null"
    )
    assert code == 0, err
    assert "MACs" in out and "test accuracy" in out
    assert preflight(home / "experiment.yml").config.max_trial_number == 6
    code, _, err = call(capsys, "init", f"{MODULE}:Net", "--data", "images")
    assert (code, "is there already: give --out another name, or --force" in err) == (2, True)


def test_weights_say_which_scale_of_the_pixels_they_expect(home, tmp_path):
    """A network that tells dark, grey and light images apart, by pixels from 0 to 1 alone."""

    class Shade(torch.nn.Module):
        def forward(self, x):
            return -((x.mean((1, 2, 3))[:, None] - torch.tensor([0.1, 0.27, 0.45])) ** 2)

    for part, count in (("train", 1), ("val", 6), ("test", 1)):
        for name, shade in (("a", 25), ("b", 70), ("c", 115)):
            (home / "shades" / part / name).mkdir(parents=True)
            for i in range(count):
                file = home / "shades" / part / name / f"{i}.png"
                Image.new("RGB", (8, 8), (shade + i, shade - i, shade)).save(file)
    settings, said = scaled_to_fit(Shade(), data_settings("shades"))
    assert settings.normalize == Normalize(mean=(0.0,) * 3, std=(1.0,) * 3)
    assert said.startswith("the weights expect pixels from 0 to 1: val accuracy 1.0000, with")
    assert scaled_to_fit(Shade(), settings) == (settings, "")  # what is said stays
    imagenet = torch.nn.Sequential(Shade())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    imagenet.register_forward_pre_hook(
        lambda _, given: (given[0] * std[:, None, None] + mean[:, None, None],)
    )
    usual = data_settings("shades")
    assert scaled_to_fit(imagenet, usual) == (usual, "")


def test_a_mistake_leaves_no_folder(home, capsys):
    recipe = {"model": {"name": f"{MODULE}:Net"}, "data": {"name": "imagefolder", "root": "no"}}
    recipe |= {"train": {"epochs": 1}, "prune": {"method": "fpgm", "budget": {"macs": 0.5}}}
    (home / "r.yml").write_text(json.dumps(recipe))
    assert call(capsys, "run", "r.yml", "--output", "made")[0] == 2
    assert not (home / "made").exists()
    (home / "own").mkdir()
    assert call(capsys, "run", "r.yml", "--output", "own")[0] == 2
    assert (home / "own").is_dir()


def test_init_without_weights_trains_first_and_paths_are_the_recipes(home, capsys):
    code, _, _ = call(
        capsys, "init", f"{MODULE}:Net", "--data", "images", "--out", "sub/first.yml", "--macs", 0.3
    )
    assert code == 0
    recipe = load_recipe("sub/first.yml")
    assert recipe.train.epochs == 30
    assert recipe.prune.budget == {"macs": 0.3}
    assert recipe.data.root in ("../images", str(home / "images"))


def test_init_says_what_cannot_be(home, capsys):
    code, _, err = call(
        capsys, "init", f"{MODULE}:Net", "--data", "images", "--macs", 0.002, "-o", "width=9"
    )
    assert (code, "its layers allow" in err) == (2, True)
    assert not (home / "recipe.yml").exists()
    code, _, err = call(capsys, "init", "resnet20", "--data", "images")
    assert code == 0  # of the zoo, for images of three channels


def test_help_shows_examples(capsys):
    for command in ("shrink", "init"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"nni-gconv {command} my_net:Net" in " ".join(capsys.readouterr().out.split())
