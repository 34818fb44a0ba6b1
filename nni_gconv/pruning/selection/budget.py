"""Meeting a budget of MACs, parameters or latency with the steps of coupled sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from nni_gconv.config_list import LayerConfig
from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.graph import CoupledSet, Wiring, decide, extend_masks
from nni_gconv.profiling import check_met
from nni_gconv.pruning.selection.allocation import Request, fit_budget, fit_measured
from nni_gconv.pruning.selection.cost import CostModel
from nni_gconv.pruning.selection.exact import fewest_errors_within

#: Classes removed -> latency relative to the dense model.
Latency = Callable[[np.ndarray], float]


def check_goals(layers: Mapping[str, LayerConfig], budget: Mapping[str, float] | None) -> None:
    """Each layer has a goal of its own, or there is a budget: not both, not neither."""
    for name, layer in layers.items():
        goals = ("sparse_ratio", "sparse_threshold")
        given = [key for key in goals if getattr(layer, key) is not None]
        if budget is not None and given:
            raise ConfigError(f"budget: {name} has a {given[0]} too; give one or the other")
        if budget is None and not given:
            raise ConfigError(
                f"config_list: {name} has neither sparse_ratio nor sparse_threshold, and there "
                "is no budget"
            )


def check_reachable(
    budget: Mapping[str, float],
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
    latency: Latency | None = None,
) -> None:
    """Raise a BudgetError if removing all that may go is not enough.

    Parameters
    ----------
    budget : mapping of str to float
        Checked by :func:`nni_gconv.pruning.selection.cost.parse_budget`.
    cost : CostModel
        Counts MACs and parameters.
    sets, requests : sequences of equal length
        The coupled sets and what may be taken from them.
    latency : callable, optional
        Measures; needed for a budget of latency.
    """
    least = _all_that_may_go(cost, sets, requests)
    for measure, value in _counted(budget).items():
        reachable, limit = cost(measure, least), cost.limit(measure, value)
        if reachable > limit:
            raise BudgetError(
                f"budget: {_shown(cost, measure, limit)} cannot be reached; the selected layers "
                f"allow {_shown(cost, measure, reachable)} at the least"
            )
    if latency is not None and "latency" in budget:
        _check_latency(budget["latency"], latency(least))


def least_costs(
    cost: CostModel, sets: Sequence[CoupledSet], requests: Sequence[Request]
) -> dict[str, float]:
    """Return the fractions of dense MACs and parameters that are left with all gone that may go.

    Parameters as for :func:`check_reachable`.
    """
    least = _all_that_may_go(cost, sets, requests)
    return {m: cost(m, least) / max(cost.dense(m), 1.0) for m in ("macs", "params")}


def _all_that_may_go(
    cost: CostModel, sets: Sequence[CoupledSet], requests: Sequence[Request]
) -> np.ndarray:
    return _removed(cost, sets, requests, [r.most() for r in requests])


def fit(
    budget: Mapping[str, float],
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
    latency: Latency | None = None,
) -> np.ndarray:
    """Remove as little as meets every measure of a budget.

    Returns
    -------
    ndarray of bool, shape (classes,)
        The classes removed.

    Raises
    ------
    BudgetError
        The latency cannot be reached; the message says what was measured.
    """
    taken = [0] * len(requests)
    counted = _counted(budget)
    if counted:
        limits = {m: cost.limit(m, value) for m, value in counted.items()}

        def fullest(steps: Sequence[int]) -> float:
            """Cost over limit of the measure that is worst off."""
            gone = _removed(cost, sets, requests, steps)
            return max(cost(m, gone) / limit for m, limit in limits.items())

        exact = _least_error(cost, sets, requests, limits, fullest)
        greedy = fit_budget(requests, fullest, 1.0)
        taken = min((exact or greedy, greedy), key=lambda steps: _error(requests, steps))
    if latency is not None and "latency" in budget:

        def measured(steps: Sequence[int]) -> float:
            return latency(_removed(cost, sets, requests, steps))

        close = _least_error_measured(cost, sets, requests, counted, measured, budget["latency"])
        taken, found = close or fit_measured(requests, measured, budget["latency"], start=taken)
        _check_latency(budget["latency"], found)
    return _removed(cost, sets, requests, taken)


def _error(requests: Sequence[Request], steps: Sequence[int]) -> float:
    """Sum of the errors of sets; 0 where they have none."""
    pairs = zip(requests, steps, strict=True)
    return sum(0.0 if r.errors is None else float(r.errors[number]) for r, number in pairs)


def _least_error(
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
    limits: Mapping[str, float],
    fullest: Callable[[Sequence[int]], float],
) -> list[int] | None:
    """Steps of each set with the least sum of errors; None where not all sets have errors."""
    if any(r.errors is None for r in requests):
        return None
    members = [coupled.classes for coupled in sets]
    costs = {m: cost.products(m, members) for m in limits}
    if any(found is None for found in costs.values()):
        return None
    ranges = [range(r.least(), r.most() + 1) for r in requests]
    kept, errors = [], []
    for request, own in zip(requests, ranges, strict=True):
        gone = np.cumsum([0, *[len(step) for step in request.steps]])
        kept.append(request.size - gone[own.start : own.stop])
        errors.append(np.asarray(request.errors)[own.start : own.stop])

    def taken(options: Sequence[int]) -> list[int]:
        return [own[o] for own, o in zip(ranges, options, strict=True)]

    found = fewest_errors_within(
        errors, kept, {m: c or [] for m, c in costs.items()}, limits,
        lambda options: fullest(taken(options)) <= 1,
    )  # fmt: skip
    return None if found is None else taken(found)


def _least_error_measured(
    cost: CostModel,
    sets: Sequence[CoupledSet],
    requests: Sequence[Request],
    counted: Mapping[str, float],
    measure: Callable[[Sequence[int]], float],
    limit: float,
    *,
    calls: int = 8,
) -> tuple[list[int], float] | None:
    """Choices of least error at fewer and fewer MACs, halved to the most whose latency fits."""
    low, high, best = 0.0, 1.0, None
    for _ in range(calls):
        middle = (low + high) / 2
        limits = {m: cost.limit(m, value) for m, value in counted.items()}
        limits["macs"] = min(limits.get("macs", np.inf), middle * cost.dense("macs"))

        def fullest(steps: Sequence[int], limits: Mapping[str, float] = limits) -> float:
            gone = _removed(cost, sets, requests, steps)
            return max(cost(m, gone) / most for m, most in limits.items())

        taken = _least_error(cost, sets, requests, limits, fullest)
        if taken is None:  # so few MACs cannot be reached
            if best is None and any(r.errors is None for r in requests):
                return None
            low = middle
            continue
        found = measure(taken)
        if found <= limit:
            low, best = middle, (taken, found)
        else:
            high = middle
    return best


def check_cuttable(
    budget: Mapping[str, float],
    cost: CostModel,
    masks: Mapping[str, Mapping[str, Tensor]],
    vanished: np.ndarray | None = None,
) -> None:
    """Raise a BudgetError if what can be cut of masks does not meet the budget they were made for.

    Parameters
    ----------
    budget, cost
        As for :func:`fit`.
    masks : mapping
        ``{module: {target: mask}}``.
    vanished : ndarray of bool, shape (classes,), optional
        Channels that go with a whole block, all of them.
    """
    graph, channels = cost.coupling.graph, cost.coupling.channels
    named = {f"{m}.{t}": mask for m, targets in masks.items() for t, mask in targets.items()}
    kept = {
        graph.aliases[name][0]: (mask != 0).cpu()
        for name, mask in named.items()
        if mask is not None and not bool(mask.all())
    }
    wiring = Wiring(graph, kept)
    kept, _ = extend_masks(graph, channels, kept, wiring)
    found = decide(graph, channels, kept, wiring, fold=True)
    removed = found.removed if vanished is None else found.removed | vanished
    left = {m: cost(m, removed) for m in _counted(budget)}
    check_met(budget, left, {m: cost.dense(m) for m in left}, list(found.held))


def _counted(budget: Mapping[str, float]) -> dict[str, float]:
    return {measure: value for measure, value in budget.items() if measure != "latency"}


def _check_latency(limit: float, found: float) -> None:
    if found > limit:
        raise BudgetError(
            f"budget: latency of {limit:.3f} of dense cannot be reached; with all removed that the "
            f"selected layers allow {found:.3f} was measured on this machine"
        )


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
