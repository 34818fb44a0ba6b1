"""The tables of docs/recipe.md are what the schema says."""

from __future__ import annotations

import runpy
from pathlib import Path

from nni_gconv.pruning import method_names
from nni_gconv.pruning.registry import find_method

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "recipe_table.py"))
PAGE = TABLE["PAGE"].read_text(encoding="utf-8")


def test_the_page_is_not_stale():
    assert TABLE["page"](PAGE) == PAGE, "run python benchmarks/recipe_table.py"


def test_every_key_and_option_stands_in_it():
    for key in ("data.image_size", "data.workers", "data.eval_batch_size", "data.cutout",
                "data.in_channels", "report.latency.warmup", "report.latency.min_runs",
                "report.latency.min_seconds", "finetune.optimizer.lr", "train.share"):  # fmt: skip
        assert f"| `{key}` |" in PAGE
    for name in method_names():
        for option in find_method(name).option_names():
            assert f"| `{option}` |" in PAGE or name not in PAGE


def test_a_stale_page_is_told():
    assert TABLE["page"](PAGE.replace("| `data.cutout` |", "| `data.cut` |")) == PAGE
