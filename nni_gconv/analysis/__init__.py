"""What channels are worth in accuracy, one coupled set at a time, before anything is pruned.

Begin with :func:`sensitivity`; it zeroes channels (`zeroing`) in the order of a criterion
(`criteria`), evaluates, and returns a :class:`Sensitivity` (`result`) of :class:`Curve`.
`trial` does it for a recipe. Knows of pruning, training and recipe.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.analysis.curves import TOLERANCE, Curve, Point, Score, Together
    from nni_gconv.analysis.measure import sensitivity
    from nni_gconv.analysis.result import Sensitivity, tolerance_of
    from nni_gconv.analysis.trial import trial_sensitivity

__all__ = [
    "TOLERANCE",
    "Curve",
    "Point",
    "Score",
    "Sensitivity",
    "Together",
    "sensitivity",
    "tolerance_of",
    "trial_sensitivity",
]

# Lazy: a help page loads no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curves": ["TOLERANCE", "Curve", "Point", "Score", "Together"],
        "measure": ["sensitivity"],
        "result": ["Sensitivity", "tolerance_of"],
        "trial": ["trial_sensitivity"],
    },
)
