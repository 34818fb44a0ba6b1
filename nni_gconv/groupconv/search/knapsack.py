"""One option a layer, as much value as the limits allow: arrays in, arrays out.

Each layer l has options o with a value and whole-number costs in several measures. To maximise

    sum_l value[l, o(l)]    with    sum_l cost[m, l, o(l)] <= limit[m]    for every measure m

is a multiple-choice knapsack problem with several knapsacks. :func:`solve_exact` hands it to HiGHS
as an integer program; :func:`solve_max_cost` is the local search of GConv Prune (arXiv 1811.09341).
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: HiGHS stops at an absolute gap of 1e-6, which is nothing to values of this size.
_SCALE = 1e3
#: HiGHS lets a row be exceeded by this, relative to its largest number.
_TOLERANCE = 1e-6
#: Nodes of the search tree (not seconds: the same problem always ends in the same way).
_NODES = 5_000
_PREFIX = b"Highs"


@dataclass(frozen=True)
class Solution:
    """Options chosen.

    Attributes
    ----------
    chosen : tuple of int
        Option of each layer.
    value : float
        Sum of the values.
    bound : float
        No choice within the limits has a greater sum.
    """

    chosen: tuple[int, ...]
    value: float
    bound: float


class ChoiceProblem:
    """Values and costs of every option of every layer, and the limits.

    Parameters
    ----------
    values : sequence of array, shapes (options,)
        For each layer.
    costs : mapping of str to sequence of int array, shapes (options,)
        The same for each measure.
    limits : mapping of str to int
        Most that the costs may add up to, for each measure of `costs`.

    Examples
    --------
    >>> values, costs = [[1.0, 0.6], [1.0, 0.7]], {"params": [[8, 4], [8, 4]]}
    >>> problem = ChoiceProblem(values, costs, {"params": 12})
    >>> solve_exact(problem)
    Solution(chosen=(0, 1), value=1.7, bound=1.7)
    """

    def __init__(
        self,
        values: Sequence[ArrayLike],
        costs: Mapping[str, Sequence[ArrayLike]],
        limits: Mapping[str, int],
    ) -> None:
        self.values = [np.asarray(v, np.float64) for v in values]
        self.costs = {m: [np.asarray(c, np.int64) for c in layers] for m, layers in costs.items()}
        self.limits = dict(limits)

    def value(self, chosen: Sequence[int]) -> float:
        """Sum of the values of one option a layer."""
        return float(sum(v[o] for v, o in zip(self.values, chosen, strict=True)))

    def cost(self, measure: str, chosen: Sequence[int]) -> int:
        """Sum of the costs of one option a layer."""
        return int(sum(c[o] for c, o in zip(self.costs[measure], chosen, strict=True)))

    def least(self, measure: str) -> int:
        """Smallest sum of costs that any choice has."""
        return int(sum(c.min() for c in self.costs[measure]))

    def fits(self, chosen: Sequence[int]) -> bool:
        """Whether a choice is within every limit."""
        return all(self.cost(m, chosen) <= limit for m, limit in self.limits.items())


def solve_exact(problem: ChoiceProblem) -> Solution | None:
    """Return the best choice within the limits, None if there is none.

    The bound equals the value unless the search tree outgrows its limit of nodes.
    """
    local = solve_max_cost(problem)
    found = _integer_program(problem, relaxed=False)
    if found is None:
        return local
    chosen, bound = found
    candidates = [c for c in (chosen, local.chosen if local else None) if c and problem.fits(c)]
    if not candidates:
        return None
    best = max(candidates, key=problem.value)
    value = problem.value(best)
    return Solution(best, value, max(value, bound))


def solve_close(problem: ChoiceProblem, floors: Mapping[str, int]) -> Solution | None:
    """Return the best of the choices that cost at least so much in one measure.

    Most value may leave much of a limit unused where options cost much. If no choice reaches a
    floor, or the best of all does, this is :func:`solve_exact`; its bound it is in any case.

    Parameters
    ----------
    problem : ChoiceProblem
        Values, costs and limits.
    floors : mapping of str to int
        Least sum of the costs, for some measures; one of them has to be reached.

    Examples
    --------
    >>> values, costs = [[1.0, 0.9], [1.0, 0.4]], {"params": [[9, 4], [8, 4]]}
    >>> problem = ChoiceProblem(values, costs, {"params": 13})
    >>> solve_exact(problem).chosen, solve_close(problem, {"params": 13}).chosen
    ((1, 0), (0, 1))
    """
    whole = solve_exact(problem)
    if whole is None or any(problem.cost(m, whole.chosen) >= f for m, f in floors.items()):
        return whole
    close = [
        result[0]
        for measure, floor in floors.items()
        if (result := _integer_program(problem, floors={measure: floor})) and result[0]
    ]
    if not close:
        return whole
    best = max(close, key=problem.value)
    return Solution(best, problem.value(best), whole.bound)


def solve_max_cost(problem: ChoiceProblem) -> Solution | None:
    """Local search from each layer's last option: step by step back, where it gains most value.

    Each step moves one layer one option back. Of the steps that stay within the limits the one is
    taken that gains the most value, until none is left; the first of equals. The original takes
    the step that gains least, and returns the first state beyond the budget.

    Returns
    -------
    Solution or None
        None if the last options together are beyond a limit. The bound is that of the linear
        relaxation.
    """
    chosen = [len(v) - 1 for v in problem.values]
    if not problem.fits(chosen):
        return None
    room = {m: limit - problem.cost(m, chosen) for m, limit in problem.limits.items()}
    while True:
        best, gain = -1, -np.inf
        for layer, option in enumerate(chosen):
            if option == 0:
                continue
            fits = all(_step(problem, m, layer, option) <= room[m] for m in room)
            values = problem.values[layer]
            if fits and values[option - 1] - values[option] > gain:
                best, gain = layer, float(values[option - 1] - values[option])
        if best < 0:
            break
        for measure in room:
            room[measure] -= _step(problem, measure, best, chosen[best])
        chosen[best] -= 1
    value = problem.value(chosen)
    relaxed = _integer_program(problem, relaxed=True)
    return Solution(tuple(chosen), value, max(value, relaxed[1]) if relaxed else value)


def _step(problem: ChoiceProblem, measure: str, layer: int, option: int) -> int:
    costs = problem.costs[measure][layer]
    return int(costs[option - 1] - costs[option])


def _integer_program(
    problem: ChoiceProblem, *, relaxed: bool = False, floors: Mapping[str, int] | None = None
) -> tuple[tuple[int, ...] | None, float] | None:
    """Choice (None without one) and upper bound by HiGHS; None if it proves that nothing fits."""
    floors = floors or {}
    layer = np.repeat(np.arange(len(problem.values)), [len(v) for v in problem.values])
    one_each = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))
    values = np.concatenate(problem.values)
    scale = _SCALE / max(float(np.ptp(values)), 1e-300)
    tightened = dict.fromkeys(problem.limits, 0)
    bound = np.inf
    while True:
        rows = [LinearConstraint(one_each, 1, 1)]
        rows += [_knapsack(problem, m, lower, floors.get(m)) for m, lower in tightened.items()]
        result = maximise(scale * values, rows, relaxed=relaxed)
        if result.status == 2:  # infeasible
            return None
        dual = result.fun if relaxed else result.mip_dual_bound
        if np.isinf(bound) and dual is not None:
            bound = -float(dual) / scale
        if relaxed or result.x is None:
            return None, bound
        chosen = tuple(int(result.x[layer == i].argmax()) for i in range(len(problem.values)))
        beyond = [m for m in tightened if problem.cost(m, chosen) > problem.limits[m]]
        if not beyond:
            return chosen, bound
        for measure in beyond:
            tightened[measure] += 1


def _knapsack(
    problem: ChoiceProblem, measure: str, tightened: int, floor: int | None
) -> LinearConstraint:
    """One limit, and a floor if there is one, of costs above each layer's least.

    In whole numbers without a common divisor, so that half a unit more than the limit changes
    nothing but keeps rounding from mattering; scaled to at most 1.
    """
    above = np.concatenate([c - c.min() for c in problem.costs[measure]])
    unit = max(1, int(np.gcd.reduce(above)))
    numbers = above // unit
    largest = max(1, int(numbers.max()))
    room = (problem.limits[measure] - problem.least(measure)) // unit + 0.5
    # Of numbers so large that the tolerance is more than half a unit, a margin comes off.
    room -= tightened * (0.5 + _TOLERANCE * largest)
    needed = -np.inf
    if floor is not None:
        needed = (-(-(floor - problem.least(measure)) // unit) - 0.5) / largest
    return LinearConstraint(csr_array((numbers / largest)[None]), needed, room / largest)


# -- HiGHS -----------------------------------------------------------------------------------------


def maximise(
    values: NDArray[np.float64], constraints: Sequence[LinearConstraint], *, relaxed: bool = False
) -> OptimizeResult:
    """Maximise a sum of values over variables that are 0 or 1.

    Parameters
    ----------
    values : ndarray of float64, shape (N,)
        Of each variable.
    constraints : sequence of LinearConstraint
        On the variables.
    relaxed : bool, default False
        Allow everything between 0 and 1.

    Returns
    -------
    OptimizeResult
        scipy's, of the minimisation of the negative sum.

    Examples
    --------
    >>> one = LinearConstraint(np.ones((1, 2)), 1, 1)
    >>> maximise(np.array([1.0, 2.0]), [one]).x.tolist()
    [0.0, 1.0]
    """
    with _highs_silenced():
        return milp(
            -values,
            constraints=constraints,
            integrality=np.full(len(values), 0 if relaxed else 1),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "node_limit": _NODES},
        )


@contextmanager
def _highs_silenced() -> Iterator[None]:
    """Drop the lines of debugging that HiGHS prints, whatever it is told, beside our JSON.

    They go through the C library to file descriptor 1. What others write there meanwhile is
    written when the block ends.
    """
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output to keep clean
        yield
        return
    flush = ctypes.CDLL(None).fflush
    with tempfile.TemporaryFile() as written:
        sys.stdout.flush()
        flush(None)
        os.dup2(written.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            flush(None)
            os.dup2(saved, 1)
            os.close(saved)
            written.seek(0)
            for line in written:
                if not line.startswith(_PREFIX):
                    os.write(1, line)
