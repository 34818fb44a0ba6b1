"""Recipes: what one trial does, and running it.

Begin with :class:`Recipe` (`schema`: every key), :func:`load_recipe` (a file with overrides) and
:func:`run_recipe`, which runs the `stages` one after the other in a trial's `folder`. Knows of all
that trains, prunes and measures; of no experiment.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.recipe.folder import TrialFolder, choose_output
    from nni_gconv.recipe.gpus import run_torchrun, torchrun_size
    from nni_gconv.recipe.load import load_recipe, parse_recipe
    from nni_gconv.recipe.result import TrialResult
    from nni_gconv.recipe.run import run_recipe
    from nni_gconv.recipe.schema import Recipe
    from nni_gconv.recipe.seal import UNDER_WAY, shared_place
    from nni_gconv.recipe.stages import Trial
    from nni_gconv.recipe.workbench import check_runs

__all__ = [
    "UNDER_WAY",
    "Recipe",
    "Trial",
    "TrialFolder",
    "TrialResult",
    "check_runs",
    "choose_output",
    "load_recipe",
    "parse_recipe",
    "run_recipe",
    "run_torchrun",
    "shared_place",
    "torchrun_size",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "folder": ["TrialFolder", "choose_output"],
        "gpus": ["run_torchrun", "torchrun_size"],
        "load": ["load_recipe", "parse_recipe"],
        "result": ["TrialResult"],
        "run": ["run_recipe"],
        "schema": ["Recipe"],
        "seal": ["UNDER_WAY", "shared_place"],
        "stages": ["Trial"],
        "workbench": ["check_runs"],
    },
)
