"""The stage that trains while it prunes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from processes import run
from safetensors.torch import load_file
from tiny_recipes import tiny

from nni_gconv.errors import ConfigError
from nni_gconv.recipe import run_recipe

HERE = Path(__file__).parents[1] / "helpers"
BUDGET = {"budget": {"macs": 0.6}}
METHODS = {
    "fpgm": {"method": "fpgm", "options": {"schedule": {"name": "cubic", "end": 2}}, **BUDGET},
    "locked": {"method": "fpgm", "options": {"selection": "locked"}, **BUDGET},
    "slimming": {"method": "slimming", "options": {"strength": 0.01}, **BUDGET},
    "rounds": {
        "method": "nni:L1NormPruner",
        "options": {"schedule": {"name": "iterative", "rounds": 2}},
        **BUDGET,
    },
}


def recipe(method):
    return tiny(train=None, sparsify={"epochs": 3, "optimizer": {"lr": 0.05}},
                prune=METHODS[method], finetune=None)  # fmt: skip


def in_a_process(content, output, *options):
    file = output.parent / f"{output.name}.json"
    file.write_text(json.dumps(content))
    return run("recipe_process.py", file, output, *options)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_trial_ends_with_the_same_files(tmp_path, method):
    whole = run_recipe(recipe(method), output=tmp_path / "whole", quiet=True)
    assert whole.metrics["macs_ratio"] <= 0.6
    died = in_a_process(recipe(method), tmp_path / "cut", "sparsify=7")
    assert died.code == -signal.SIGKILL, died.said
    assert not (tmp_path / "cut" / "masks.safetensors").exists()
    resumed = run_recipe(recipe(method), output=tmp_path / "cut", quiet=True)
    assert resumed.metrics == whole.metrics
    for name in ("masks", "masked", "compact"):
        ours = load_file(tmp_path / "cut" / f"{name}.safetensors")
        theirs = load_file(tmp_path / "whole" / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.slow
def test_the_log_shows_masks_growing(tmp_path):
    run_recipe(recipe("fpgm"), output=tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    found = [line["sparsity"] for line in lines if line["stage"] == "sparsify"]
    assert len(found) == 3
    assert 0 < found[0] < found[1] == found[2]


@pytest.mark.parametrize(
    ("prune", "sparsify", "said"),
    [
        (
            {"method": "fpgm", "options": {"schedule": "cubic"}, **BUDGET},
            None,
            r"schedule cubic: needs training: .* a sparsify section",
        ),
        (
            {"method": "slimming", "options": {"schedule": {"name": "linear", "end": 9}}, **BUDGET},
            {"epochs": 3},
            r"schedule.end: 9 is too late for a training of 3 epochs",
        ),
        (
            {"method": "slimming", "options": {"strenght": 1e-3}, **BUDGET},
            {"epochs": 1},
            r"prune.options: unknown option 'strenght'; did you mean 'strength'",
        ),
        (
            {"method": "nni:TaylorPruner", "options": {"schedule": "linear"}, **BUDGET},
            {"epochs": 1},
            r"schedule: TaylorPruner scores while it trains itself",
        ),
    ],
)
def test_mistakes_are_found_before_anything_trains(tmp_path, prune, sparsify, said):
    with pytest.raises(ConfigError, match=said):
        run_recipe(tiny(prune=prune, sparsify=sparsify), output=tmp_path, quiet=True)
    assert not (tmp_path / "dense.safetensors").exists()
