"""Meeting a budget of MACs, parameters or latency with the steps of coupled sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nni_gconv.errors import BudgetError
from nni_gconv.pruning.allocation import Request, fit_budget
from nni_gconv.pruning.cost import CostModel
from nni_gconv.speedup.coupling import CoupledSet

__all__ = ["check_reachable", "fit"]


def check_reachable(
    budget: Mapping[str, float],
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
) -> None:
    """Raise a BudgetError if removing all that may go is not enough.

    Parameters
    ----------
    budget : mapping of str to float
        Checked by :func:`nni_gconv.pruning.cost.parse_budget`.
    cost : CostModel
        Counts MACs and parameters.
    sets, requests : sequences of equal length
        The coupled sets and what may be taken from them.
    """
    least = _removed(cost, sets, requests, [r.most() for r in requests])
    for measure, value in budget.items():
        reachable, limit = cost(measure, least), cost.limit(measure, value)
        if reachable > limit:
            raise BudgetError(
                f"budget: {_shown(cost, measure, limit)} cannot be reached; the selected layers "
                f"allow {_shown(cost, measure, reachable)} at the least"
            )


def fit(
    budget: Mapping[str, float],
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
) -> np.ndarray:
    """Remove as little as meets every measure of a budget.

    Returns
    -------
    ndarray of bool, shape (classes,)
        The classes removed.
    """
    taken = [0] * len(requests)
    for measure, value in budget.items():
        price = _price(cost, measure, sets, requests)
        found = fit_budget(requests, price, cost.limit(measure, value))
        taken = [max(a, b) for a, b in zip(taken, found, strict=True)]
    return _removed(cost, sets, requests, taken)


def _price(
    cost: CostModel, measure: str, sets: Sequence[CoupledSet], requests: Sequence[Request]
) -> Callable[[Sequence[int]], float]:
    return lambda steps: cost(measure, _removed(cost, sets, requests, steps))


def _removed(
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
    steps: Sequence[int],
) -> np.ndarray:
    gone = cost.coupling.empty()
    for coupled, request, number in zip(sets, requests, steps, strict=True):
        for step in request.steps[:number]:
            gone[coupled.classes[step]] = True
    return gone


def _shown(cost: CostModel, measure: str, amount: float) -> str:
    return f"{measure} of {amount / cost.dense(measure):.3f} of dense ({amount:,.0f})"
