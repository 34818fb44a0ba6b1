"""Paths in a recipe start from its own folder, and a run says what it does."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_recipes import tiny

from nni_gconv.files import write_text
from nni_gconv.recipe import load_recipe, run_recipe
from nni_gconv.yaml12 import write_yaml


def test_paths_start_from_the_recipes_folder(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "images", elsewhere / "images", elsewhere / "more"):
        folder.mkdir(parents=True)
    (home / "w.safetensors").touch()
    content = tiny()
    content["model"]["weights"] = "w.safetensors"
    content["data"] = {"name": "imagefolder", "root": "images"}
    write_text(home / "recipe.yml", write_yaml(content))
    monkeypatch.chdir(elsewhere)
    found = load_recipe(Path("../home/recipe.yml"))
    assert found.data.root == str(home / "images")
    assert found.model.weights == str(home / "w.safetensors")
    # What is not there starts from the working directory; what is given by hand does so always.
    content["data"]["root"] = "more"
    write_text(home / "recipe.yml", write_yaml(content))
    assert load_recipe(home / "recipe.yml").data.root == "more"
    given = {"data.root": "images"}
    assert load_recipe(home / "recipe.yml", given).data.root == "images"
    monkeypatch.chdir(home)
    assert load_recipe("recipe.yml").model.weights == "w.safetensors"  # as it was written


@pytest.mark.slow
def test_a_run_says_its_data_and_its_stages(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    recipe = tiny(data={"name": "imagefolder", "root": str(tmp_path / "pets"), "workers": 0})
    run_recipe(recipe, output=tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "run: imagefolder: 29 train, 3 validation (10% of pets/, held out), "
        "8 test (20% of pets/, held out), 2 classes, 3x16x16 (the images' own size)"
    )
    stages = [line.split()[1] for line in lines[1:] if line.startswith("run: ")]
    assert stages == ["train", "prune", "speedup", "finetune", "report"]
    assert "equal to the masked network" in next(x for x in lines if "speedup" in x)
