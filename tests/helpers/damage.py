"""What the tests of tests/reliability share: how long they run, finished trials, their sums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from tiny_recipes import tiny

from nni_gconv.recipe import run_recipe

#: How many cases of a kind are tried; more in a long run.
EXAMPLES = int(os.environ.get("NNI_GCONV_EXAMPLES", "0"))

RECIPE = tiny(
    train={"epochs": 1, "optimizer": {"lr": 0.05}},
    sparsify={"epochs": 1},
    prune={"method": "slimming", "budget": {"macs": 0.6}},
    finetune={"epochs": 1},
)
FINAL = ("dense", "masks", "masked", "speedup", "compact")


def trial(folder: Path, recipe=None) -> dict:
    """Run the recipe in a folder and return its numbers."""
    return run_recipe(recipe or RECIPE, output=folder, quiet=True).metrics


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of the networks and masks of a trial."""
    return {
        name: hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
        for name in FINAL
    }


def numbers(folder: Path) -> dict:
    """The numbers of a trial's result.json."""
    return json.loads((folder / "result.json").read_text())["metrics"]
