"""Run a recipe in a process of its own, for the tests that kill it or start several.

usage: recipe_process.py RECIPE.json OUTPUT [stage=N]

With ``finetune=7`` the process kills itself at the seventh optimizer step of that stage.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from nni_gconv.recipe import run_recipe, stages


def die_in(stage: str, step: int) -> None:
    """Count the steps of a stage, whether it trains by itself or for a pruner."""
    for name in ("fit", "make_evaluator"):
        real = getattr(stages, name)

        def counting(*args, real=real, **options):
            left = [step if options.get("stage", "sparsify") == stage else -1]

            def count() -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            return real(*args, after_step=count, **options)

        setattr(stages, name, counting)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for option in sys.argv[3:]:
        name, number = option.split("=")
        die_in(name, int(number))
    recipe = json.loads(Path(sys.argv[1]).read_text())
    run_recipe(recipe, output=sys.argv[2], quiet=True)
