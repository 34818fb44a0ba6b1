"""What is behind :mod:`nni_gconv.tuner`: arrays in, proposals out.

Begin with :class:`ParetoTuner` (`pareto`), which has NNI's hooks: `options` reads a search space
with costs, `surrogate` learns from trials what layers tolerate, `propose` chooses the next trial,
`front` is the Pareto front. `grid` is NNI's grid search, `tables` makes a recipe's search space.
Knows of groupconv (the knapsack) and, in `tables` alone, of recipes; needs no torch besides.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.tuning.grid import GridSearch
    from nni_gconv.tuning.options import COST_LISTS, check_cost_lists
    from nni_gconv.tuning.pareto import ParetoTuner
    from nni_gconv.tuning.tables import recipe_space

__all__ = ["COST_LISTS", "GridSearch", "ParetoTuner", "check_cost_lists", "recipe_space"]

# Lazy: a help page loads no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "grid": ["GridSearch"],
        "options": ["COST_LISTS", "check_cost_lists"],
        "pareto": ["ParetoTuner"],
        "tables": ["recipe_space"],
    },
)
