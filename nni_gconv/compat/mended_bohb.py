"""NNI's BOHB, mended like Hyperband; apart from it because it needs ConfigSpace and statsmodels."""

from __future__ import annotations

from typing import Any

from nni.algorithms.hpo.bohb_advisor import BOHB as _BOHB

from nni_gconv.compat.mended_tuners import StringIds


class BOHB(StringIds, _BOHB):
    """NNI's BOHB.

    Parameters
    ----------
    budget_key : str, default "TRIAL_BUDGET"
        The parameter that carries a trial's budget, such as ``finetune.epochs`` for a recipe.
    **class_args
        NNI's: optimize_mode, min_budget, max_budget, eta and so on.
    """

    def __init__(self, budget_key: str = "TRIAL_BUDGET", **class_args: Any) -> None:
        self._budget_key = budget_key
        super().__init__(**class_args)
