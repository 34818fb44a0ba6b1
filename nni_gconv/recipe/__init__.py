"""Recipes: what one trial does, and running it.

Begin with :class:`Recipe` (`schema`: every key), :func:`load_recipe` (a file with overrides) and
:func:`run_recipe`, which runs the `stages` one after the other in a trial's `folder`. Knows of all
that trains, prunes and measures; of no experiment.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.recipe.load import load_recipe
    from nni_gconv.recipe.result import TrialResult
    from nni_gconv.recipe.run import run_recipe
    from nni_gconv.recipe.schema import Recipe

__all__ = ["Recipe", "TrialResult", "load_recipe", "run_recipe"]

# Lazy: reading a recipe loads no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "load": ["load_recipe"],
        "result": ["TrialResult"],
        "run": ["run_recipe"],
        "schema": ["Recipe"],
    },
)
