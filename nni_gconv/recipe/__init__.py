"""Recipes: what one trial does, and running it."""

from nni_gconv.recipe.load import load_recipe
from nni_gconv.recipe.result import TrialResult
from nni_gconv.recipe.run import run_recipe
from nni_gconv.recipe.schema import Recipe

__all__ = ["Recipe", "TrialResult", "load_recipe", "run_recipe"]
