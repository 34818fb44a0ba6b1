"""Group counts from tables, within budgets of the whole network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from nni_gconv.errors import BudgetError
from nni_gconv.groupconv.forms import FormTimer, quickest_copy
from nni_gconv.groupconv.search.knapsack import (
    ChoiceProblem,
    Solution,
    solve_close,
    solve_exact,
    solve_max_cost,
)
from nni_gconv.groupconv.search.tables import GroupTables
from nni_gconv.groupconv.search.timing import grouped_copy
from nni_gconv.profiling import Counts, batch_of, compare_latency

Strategy = Literal["exact", "max_cost"]
Score = Literal["relative", "absolute", "geometric", "error"]
STRATEGIES = {"exact": solve_exact, "max_cost": solve_max_cost}
SCORES = ("relative", "absolute", "geometric", "error")
#: Solutions that are timed until one is within a budget of latency.
_ATTEMPTS = 6
#: A network that takes this share of a budget of latency makes good use of it.
_CLOSE = 0.95
_NANOSECONDS = 1e6
#: Logarithms are of shares of at least this.
_SMALLEST = 1e-12


def counts(tables: GroupTables, chosen: tuple[int, ...]) -> Counts:
    """Parameters and MACs of the whole network with one option a layer."""
    params, macs = tables.dense
    for table, option in zip(tables.layers, chosen, strict=True):
        params -= table.dense_params - table.params[option]
        macs -= table.dense_macs - table.macs[option]
    return Counts(params, macs)


def check_reachable(tables: GroupTables, budget: Mapping[str, float]) -> None:
    """Raise a BudgetError if the largest group counts have too many parameters or MACs.

    Needs no scores, so that it can come before the partitions, which take longest.
    """
    for measure in (m for m in budget if m != "latency"):
        dense, limit = getattr(tables.dense, measure), _limit(tables, budget, measure)
        least = _rest(tables, measure) + sum(min(getattr(t, measure)) for t in tables.layers)
        if least > limit:
            raise BudgetError(
                f"budget: {measure} of {limit / dense:.3f} of dense ({limit:,}) cannot be reached; "
                f"the group counts allowed reach {least / dense:.3f} ({least:,})"
            )


def solve_tables(
    tables: GroupTables,
    budget: Mapping[str, float],
    *,
    strategy: Strategy = "exact",
    score: Score = "relative",
    fill: float = 0.0,
) -> Solution:
    """Choose an option of each layer within a budget of parameters and MACs.

    Parameters
    ----------
    tables : GroupTables
        The options.
    budget : mapping of str to float
        ``params`` and ``macs``: fractions of the dense network up to 1, counts above.
    strategy, score, fill
        As for :func:`nni_gconv.groupconv.search.search.search_groups`.

    Returns
    -------
    Solution
        Option of each layer; value and bound are shares of score, 0 to 1.

    Raises
    ------
    BudgetError
        The largest group counts are beyond the budget.
    """
    check_reachable(tables, budget)
    problem = _problem(tables, budget, score)
    if fill and strategy == "exact":
        floors = {
            m: math.ceil(fill * _limit(tables, budget, m)) - _rest(tables, m)
            for m in problem.limits
        }
        solution = solve_close(problem, floors)
    else:
        solution = STRATEGIES[strategy](problem)
    # Groups save parameters and MACs alike: what each allows, all allow.
    assert solution is not None
    return _shares(solution, score)


def solve_timed(
    model: nn.Module,
    dummy_input: Any,
    tables: GroupTables,
    budget: Mapping[str, float],
    *,
    score: Score = "relative",
    gathers: int = 0,
) -> tuple[Solution, float]:
    """Choose options within a budget of latency too; the grouped network itself is timed.

    The sum of the layers' times follows that of the network, but is not it. So the network found
    is measured, and the sum allowed is moved to where a line through what was measured so far
    meets the budget. Of the networks within the budget the one that retains most is taken.

    Returns
    -------
    solution : Solution
        Option of each layer; its bound is for the time that the estimate allowed it.
    ratio : float
        Time of the grouped over that of the dense network, measured in turn, both with every layer
        in its quickest form.

    Raises
    ------
    BudgetError
        None of them measured fast enough.
    """
    wanted, timer = budget["latency"], FormTimer()
    dense_ms = sum(table.dense_milliseconds or 0.0 for table in tables.layers)
    limit, points = wanted * dense_ms, [(dense_ms, 1.0)]
    measured: dict[tuple[int, ...], tuple[Solution, float]] = {}
    for _ in range(_ATTEMPTS):
        problem = _problem(tables, budget, score, milliseconds=limit)
        # Less than the layers' least times is not refused before it has been tried.
        problem.limits["latency"] = max(problem.limits["latency"], problem.least("latency"))
        solution = solve_exact(problem)
        if solution is None or solution.chosen in measured:
            break
        ratio = _measured(model, dummy_input, tables, solution, gathers, timer)
        measured[solution.chosen] = _shares(solution, score), ratio
        if _CLOSE * wanted <= ratio <= wanted:
            break
        points.append((problem.cost("latency", solution.chosen) / _NANOSECONDS, ratio))
        limit = _next_limit(points, wanted)
    within = [pair for pair in measured.values() if pair[1] <= wanted]
    if within:
        return max(within, key=lambda pair: pair[0].value)
    if not measured:
        others = " and ".join(m for m in problem.limits if m != "latency")
        raise BudgetError(f"budget: latency cannot be reached together with {others}")
    fastest = min(ratio for _, ratio in measured.values())
    raise BudgetError(
        f"budget: latency of {wanted:.3f} of dense was not reached; the fastest network tried "
        f"measured {fastest:.3f} on this machine"
    )


def _next_limit(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """Sum of layer times where a line through measurements is a little below the budget.

    Examples
    --------
    >>> _next_limit([(10.0, 1.0), (5.0, 0.6)], 0.5)  # each millisecond was worth 0.08
    3.59375
    """
    aim = (1 + _CLOSE) / 2 * wanted
    slow = min((p for p in points if p[1] > wanted), key=lambda p: p[1], default=points[0])
    fast = max((p for p in points if p[1] <= wanted), key=lambda p: p[1], default=None)
    if fast is None:
        slow, fast = points[0], slow
    if fast[0] >= slow[0] or fast[1] >= slow[1]:  # noise: faster by the layers, slower by the clock
        return fast[0] / 2
    return fast[0] + (slow[0] - fast[0]) * (aim - fast[1]) / (slow[1] - fast[1])


def _measured(
    model: nn.Module,
    dummy_input: Any,
    tables: GroupTables,
    solution: Solution,
    gathers: int,
    timer: FormTimer,
) -> float:
    """Time of the grouped network over that of the dense one, their layers in quickest forms."""
    options = zip(tables.layers, solution.chosen, strict=True)
    groups = {table.name: table.choices[option] for table, option in options}
    if all(groups[table.name] == table.had for table in tables.layers):
        return 1.0
    models = {
        "dense": quickest_copy(model, dummy_input, timer),
        "grouped": quickest_copy(grouped_copy(model, groups, gathers=gathers), dummy_input, timer),
    }
    return compare_latency(models, dummy_input, batch_size=batch_of(dummy_input)).ratios["grouped"]


def _problem(
    tables: GroupTables,
    budget: Mapping[str, float],
    score: Score,
    milliseconds: float | None = None,
) -> ChoiceProblem:
    """Values and costs of the tables; `milliseconds` limit the sum of the layers' times."""
    values = _values(tables, score)
    costs: dict[str, list[Any]] = {}
    limits: dict[str, int] = {}
    for measure in (m for m in budget if m != "latency"):
        costs[measure] = [getattr(table, measure) for table in tables.layers]
        limits[measure] = _limit(tables, budget, measure) - _rest(tables, measure)
    if milliseconds is not None:
        costs["latency"] = [
            [math.floor(ms * _NANOSECONDS) for ms in table.milliseconds or ()]
            for table in tables.layers
        ]
        limits["latency"] = math.floor(milliseconds * _NANOSECONDS)
    return ChoiceProblem(values, costs, limits)


def _values(tables: GroupTables, score: Score) -> list[list[float]]:
    """What each option adds to the sum that is maximised."""
    if score == "absolute":
        total = sum(table.total for table in tables.layers) or 1.0
        return [[kept / total for kept in table.retained] for table in tables.layers]
    number = len(tables.layers)
    shares = [[t.fraction(i) for i in range(len(t.choices))] for t in tables.layers]
    if score in ("relative", "error"):
        return [[share / number for share in layer] for layer in shares]
    return [[math.log(max(share, _SMALLEST)) / number for share in layer] for layer in shares]


def _shares(solution: Solution, score: Score) -> Solution:
    """Value and bound as shares of score, 0 to 1."""
    if score == "geometric":
        value, bound = math.exp(solution.value), math.exp(solution.bound)
        return dataclasses.replace(solution, value=value, bound=bound)
    return solution


def _limit(tables: GroupTables, budget: Mapping[str, float], measure: str) -> int:
    value = budget[measure]
    return math.floor(value * getattr(tables.dense, measure) if value <= 1 else value)


def _rest(tables: GroupTables, measure: str) -> int:
    """Cost of all that is not searched."""
    own = sum(getattr(table, f"dense_{measure}") for table in tables.layers)
    return int(getattr(tables.dense, measure) - own)
