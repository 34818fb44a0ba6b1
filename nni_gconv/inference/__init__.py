"""Networks for inference: norms folded, and every layer in its quickest equal form.

Begin with :func:`optimize`. :func:`find_forms` measures and makes a :class:`FormPlan` (`plan`),
:func:`apply_forms` builds the network of one. `norms` folds batch norms, `search` times layers,
`judge` whole networks, `work` tells which of them run the same, `chain` decides memory formats of
neighbours together, `check` compares numbers. Knows of graph, groupconv's forms and profiling.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.inference.norms import fold_batch_norms, foldable_norms
    from nni_gconv.inference.optimize import (
        Optimized,
        built_by,
        mark_optimized,
        optimize,
        origin_of,
        report_of,
    )
    from nni_gconv.inference.plan import FormPlan, LayerForm, apply_forms
    from nni_gconv.inference.ratio import quick_ratio
    from nni_gconv.inference.report import LayerChoice, OptimizeReport, TimedNetwork
    from nni_gconv.inference.search import find_forms
    from nni_gconv.inference.work import work_of

__all__ = [
    "FormPlan",
    "LayerChoice",
    "LayerForm",
    "OptimizeReport",
    "Optimized",
    "TimedNetwork",
    "apply_forms",
    "built_by",
    "find_forms",
    "fold_batch_norms",
    "foldable_norms",
    "mark_optimized",
    "optimize",
    "origin_of",
    "quick_ratio",
    "report_of",
    "work_of",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "norms": ["fold_batch_norms", "foldable_norms"],
        "optimize": [
            "Optimized",
            "built_by",
            "mark_optimized",
            "optimize",
            "origin_of",
            "report_of",
        ],
        "plan": ["FormPlan", "LayerForm", "apply_forms"],
        "ratio": ["quick_ratio"],
        "report": ["LayerChoice", "OptimizeReport", "TimedNetwork"],
        "search": ["find_forms"],
        "work": ["work_of"],
    },
)
