"""How many groups each layer gets within a budget.

Begin with :func:`search_groups`. A layer's options and what they keep and cost are `tables`
(latency by `timing`), choosing one option a layer is a `knapsack` problem, `budget` says what has
to fit, and `requests` which layers are meant. Knows of groupconv, partition and profiling.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.groupconv.search.budget import (
        Score,
        check_reachable,
        counts,
        solve_tables,
        solve_timed,
    )
    from nni_gconv.groupconv.search.error_tables import error_tables
    from nni_gconv.groupconv.search.knapsack import (
        ChoiceProblem,
        Solution,
        solve_close,
        solve_exact,
        solve_max_cost,
    )
    from nni_gconv.groupconv.search.requests import GroupRequest, group_requests
    from nni_gconv.groupconv.search.search import GroupSearch, search_groups
    from nni_gconv.groupconv.search.tables import (
        ChoiceRules,
        GroupTables,
        LayerTable,
        cost_tables,
        kernel_scores,
        score_tables,
    )
    from nni_gconv.groupconv.search.timing import LayerTimer, grouped_copy, slower_than_dense

__all__ = [
    "ChoiceProblem",
    "ChoiceRules",
    "GroupRequest",
    "GroupSearch",
    "GroupTables",
    "LayerTable",
    "LayerTimer",
    "Score",
    "Solution",
    "check_reachable",
    "cost_tables",
    "counts",
    "error_tables",
    "group_requests",
    "grouped_copy",
    "kernel_scores",
    "score_tables",
    "search_groups",
    "slower_than_dense",
    "solve_close",
    "solve_exact",
    "solve_max_cost",
    "solve_tables",
    "solve_timed",
]

# Lazy: the tuner solves `knapsack` problems without torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "budget": ["Score", "check_reachable", "counts", "solve_tables", "solve_timed"],
        "error_tables": ["error_tables"],
        "knapsack": ["ChoiceProblem", "Solution", "solve_close", "solve_exact", "solve_max_cost"],
        "requests": ["GroupRequest", "group_requests"],
        "search": ["GroupSearch", "search_groups"],
        "tables": [
            "ChoiceRules",
            "GroupTables",
            "LayerTable",
            "cost_tables",
            "kernel_scores",
            "score_tables",
        ],
        "timing": ["LayerTimer", "grouped_copy", "slower_than_dense"],
    },
)
