"""What a trial does but once: trace the model, make its pruner, count it, build it again."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

import nni_gconv.recipe.stages  # noqa: F401 - all that is watched is imported by it
from nni_gconv import run_recipe

ROOT = Path(__file__).parents[2]
WATCHED = {
    "trace": "graph.trace",
    "create_pruner": "pruning.settings",
    "count": "profiling.costs",
    "profile": "profiling.costs",
    "load_compact": "artefact",
}


@pytest.fixture
def calls(monkeypatch):
    """Count calls of these functions wherever they have been imported to."""

    made = Counter()
    for name, module in WATCHED.items():
        function = getattr(sys.modules[f"nni_gconv.{module}"], name)

        def counted(*args, _name=name, _function=function, **options):
            made[_name] += 1
            return _function(*args, **options)

        for other in list(sys.modules.values()):
            known = vars(other) if getattr(other, "__name__", "").startswith("nni_gconv") else {}
            if known.get(name) is function:
                monkeypatch.setattr(other, name, counted)
    return made


def shortened(**changes):
    recipe = yaml.safe_load((ROOT / "configs" / "digits-fpgm.yml").read_text())
    recipe["data"]["train_size"] = 200
    for stage in ("train", "finetune"):
        recipe[stage]["epochs"] = 1
    return {**recipe, "report": {"latency": None}, "device": "cpu", **changes}


@pytest.mark.slow
def test_each_is_done_once(calls, tmp_path):
    first = run_recipe(shortened(), output=tmp_path, quiet=True)
    assert calls == {"trace": 1, "create_pruner": 1, "profile": 2, "load_compact": 1}
    calls.clear()
    again = run_recipe(shortened(), output=tmp_path, quiet=True)  # all is finished
    assert calls == {"load_compact": 1}
    assert again.metrics == first.metrics


@pytest.mark.slow
def test_a_pruner_that_trains_is_made_again_after_the_dense_training(calls, tmp_path):
    recipe = shortened(sparsify={"epochs": 1})
    run_recipe(recipe, output=tmp_path, quiet=True)
    assert calls == {"trace": 1, "create_pruner": 2, "profile": 2, "load_compact": 1}
