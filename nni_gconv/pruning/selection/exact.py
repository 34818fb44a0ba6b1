"""How many channels of each set stay so that their errors are least: an exact program.

Each set s has options o, a number of channels n[s, o] that stay and the error e[s, o] of that. What
a layer costs is a product of two widths, each a sum over the sets that it holds, so to minimise

    sum_s e[s, o(s)]    with    sum_t c_t (a_t + sum_s a_ts n_s) (b_t + sum_s b_ts n_s) <= limit

is an integer program with products. With x[s, o] = 1 for the option chosen, a product x[s, o] G of
a width G becomes a number z[s, o] with sum_o z[s, o] = G and least(G) x <= z <= most(G) x: exact
where x is whole. HiGHS solves it by branch and bound.

Sets of many steps are first given a coarse choice among them, then every step around what was
chosen; that is no longer exact over all steps, only over those. Where the search tree outgrows its
limit the best that was found is taken; who asks compares it with a greedy choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

Floats = NDArray[np.float64]

#: Options of a set in one program.
_OPTIONS = 24
#: Programs of a choice: the coarse one and closer ones.
_ROUNDS = 3
#: How many options to each side a closer program looks.
_REACH = 4
#: Nodes of the search tree times options (not seconds: the same problem always ends the same way).
_WORK = 40_000
#: Relative gap between what is found and what is proven that ends the search.
_GAP = 1e-3


@dataclass(frozen=True)
class Width:
    """A width of a layer: a constant, and a number of times the channels that each set keeps."""

    constant: float
    times: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Product:
    """What a layer costs: a factor times two widths."""

    factor: float
    first: Width
    second: Width


@dataclass(frozen=True)
class ErrorProblem:
    """Errors of sets, costs of layers and limits.

    Attributes
    ----------
    kept : sequence of array of int, shapes (options,)
        Channels that each set keeps, for each of its options.
    errors : sequence of array, shapes (options,)
    costs : mapping of str to sequence of Product
        For each measure.
    limits : mapping of str to float
    """

    kept: Sequence[NDArray[np.int64]]
    errors: Sequence[Floats]
    costs: Mapping[str, Sequence[Product]]
    limits: Mapping[str, float]

    def cost(self, measure: str, chosen: Sequence[int]) -> float:
        """Add up what the layers cost with one option a set."""
        n = [k[o] for k, o in zip(self.kept, chosen, strict=True)]

        def size(width: Width) -> float:
            return width.constant + sum(a * n[s] for s, a in width.times)

        return float(sum(t.factor * size(t.first) * size(t.second) for t in self.costs[measure]))

    def error(self, chosen: Sequence[int]) -> float:
        """Add up the errors of one option a set."""
        return float(sum(e[o] for e, o in zip(self.errors, chosen, strict=True)))


def least_error(problem: ErrorProblem) -> list[int] | None:
    """Return the option of each set, None if none is within the limits or none was found.

    Examples
    --------
    >>> kept, errors = [np.array([2, 1])] * 2, [np.array([0.0, 0.3]), np.array([0.0, 0.2])]
    >>> costs = {"macs": [Product(1.0, Width(0.0, ((0, 1.0),)), Width(0.0, ((1, 1.0),)))]}
    >>> least_error(ErrorProblem(kept, errors, costs, {"macs": 2.0}))
    [0, 1]
    """
    program = _Program(problem)
    result = milp(
        program.objective,
        constraints=program.constraints(),
        integrality=program.whole,
        bounds=Bounds(program.low, program.high),
        options={"node_limit": max(20, _WORK // int(program.whole.sum())), "mip_rel_gap": _GAP},
    )
    if result.x is None:
        return None
    return [int(np.argmax(result.x[own])) for own in program.options]


class _Program:
    """The integer program of a problem: columns x of the options, then columns z of products."""

    def __init__(self, problem: ErrorProblem) -> None:
        self._problem = problem
        ends = np.cumsum([0, *map(len, problem.kept)])
        self.options = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self.size = int(ends[-1])
        self._products: dict[tuple[int, Width], slice] = {}
        self._rows: list[tuple[dict[int, float], float, float]] = []
        for own in self.options:
            self._rows.append((dict.fromkeys(range(own.start, own.stop), 1.0), 1.0, 1.0))
        for measure, limit in problem.limits.items():
            row: dict[int, float] = {}
            constant = sum(self._add(row, term) for term in problem.costs[measure])
            scale = limit or 1.0
            scaled = {column: value / scale for column, value in row.items()}
            self._rows.append((scaled, -np.inf, (limit - constant) / scale))
        scale = max(float(np.max(e)) for e in problem.errors) or 1.0
        self.objective = np.zeros(self.size)
        self.objective[: ends[-1]] = np.concatenate(problem.errors) / scale
        self.whole = np.zeros(self.size)
        self.whole[: ends[-1]] = 1
        self.low, self.high = np.zeros(self.size), np.full(self.size, np.inf)
        self.high[: ends[-1]] = 1

    def constraints(self) -> LinearConstraint:
        """All rows as one sparse matrix."""
        places = [(r, c, v) for r, (row, _, _) in enumerate(self._rows) for c, v in row.items()]
        rows, columns, values = zip(*places, strict=True)
        matrix = coo_matrix((values, (rows, columns)), shape=(len(self._rows), self.size)).tocsr()
        low, high = ([row[i] for row in self._rows] for i in (1, 2))
        return LinearConstraint(matrix, low, high)

    def _add(self, row: dict[int, float], term: Product) -> float:
        """Add a layer to a row; return the part of it that is constant."""
        one, other = sorted((term.first, term.second), key=lambda w: len(w.times))
        # (a + sum a_s n_s) G = a G + sum a_s (n_s G)
        constant = self._add_width(row, other, term.factor * one.constant)
        for number, times in one.times:
            self._add_product(row, number, other, term.factor * times)
        return constant

    def _add_width(self, row: dict[int, float], width: Width, factor: float) -> float:
        for number, times in width.times:
            own, kept = self.options[number], self._problem.kept[number]
            for column, n in zip(range(own.start, own.stop), kept, strict=True):
                row[column] = row.get(column, 0.0) + factor * times * n
        return factor * width.constant

    def _add_product(self, row: dict[int, float], number: int, width: Width, factor: float) -> None:
        """Add factor * n_s * G: of the part of G that is n_s itself by squares, else by z."""
        own, kept = self.options[number], self._problem.kept[number]
        alone = dict(width.times).get(number, 0.0)
        rest = Width(0.0, tuple((s, a) for s, a in width.times if s != number))
        for column, n in zip(range(own.start, own.stop), kept, strict=True):
            row[column] = row.get(column, 0.0) + factor * n * (width.constant + alone * n)
        if rest.times:
            z = self._product(number, rest)
            for column, n in zip(range(z.start, z.stop), kept, strict=True):
                row[column] = row.get(column, 0.0) + factor * n

    def _product(self, number: int, width: Width) -> slice:
        """Columns z[o] = x[s, o] G; made when first asked for."""
        if (number, width) in self._products:
            return self._products[number, width]
        own, kept = self.options[number], self._problem.kept
        z = slice(self.size, self.size + own.stop - own.start)
        self.size = z.stop
        self._products[number, width] = z
        least = sum(a * float(kept[s].min()) for s, a in width.times)
        most = sum(a * float(kept[s].max()) for s, a in width.times)
        total: dict[int, float] = dict.fromkeys(range(z.start, z.stop), 1.0)
        self._add_width(total, width, -1.0)
        self._rows.append((total, 0.0, 0.0))
        for x, product in zip(range(own.start, own.stop), range(z.start, z.stop), strict=True):
            self._rows.append(({product: 1.0, x: -most}, -np.inf, 0.0))
            self._rows.append(({product: 1.0, x: -least}, 0.0, np.inf))
        return z


def fewest_errors_within(
    errors: Sequence[Floats],
    kept: Sequence[NDArray[np.int64]],
    costs: Mapping[str, Sequence[Product]],
    limits: Mapping[str, float],
    fits: Callable[[Sequence[int]], bool],
) -> list[int] | None:
    """Choose the steps of each set, first among some of them, then among all near by.

    Parameters
    ----------
    errors, kept : sequences of arrays, shapes (options,)
        Of each set, for every number of steps that may be taken.
    costs, limits : mappings
        See :class:`ErrorProblem`.
    fits : callable
        Whether a choice really is within the limits, which `costs` may miss by a little.

    Returns
    -------
    list of int or None
        Place of the option of each set; None where nothing was found.
    """
    some = [np.unique(np.linspace(0, len(e) - 1, _OPTIONS).round().astype(int)) for e in errors]
    best: list[int] | None = None
    least = np.inf
    for _ in range(_ROUNDS):
        chosen = _within(errors, kept, some, costs, limits, fits)
        if chosen is not None:
            total = sum(float(e[i]) for e, i in zip(errors, chosen, strict=True))
            if total < least:
                best, least = chosen, total
        if best is None or all(len(o) == len(e) for o, e in zip(some, errors, strict=True)):
            break
        some = [_around(b, o) for b, o in zip(best, some, strict=True)]
    return best


def _within(
    errors: Sequence[Floats],
    kept: Sequence[NDArray[np.int64]],
    some: Sequence[NDArray[np.int64]],
    costs: Mapping[str, Sequence[Product]],
    limits: Mapping[str, float],
    fits: Callable[[Sequence[int]], bool],
) -> list[int] | None:
    """Solve for some of the options, with limits a little lower until the choice really fits."""
    share = 1.0
    for _ in range(6):
        problem = ErrorProblem(
            [k[o] for k, o in zip(kept, some, strict=True)],
            [e[o] for e, o in zip(errors, some, strict=True)],
            costs,
            {measure: limit * share for measure, limit in limits.items()},
        )
        found = least_error(problem)
        if found is None:
            return None
        chosen = [int(o[i]) for o, i in zip(some, found, strict=True)]
        if fits(chosen):
            return chosen
        share *= 1 - 2e-3
    return None


def _around(chosen: int, options: NDArray[np.int64]) -> NDArray[np.int64]:
    """Options near the one chosen, as close as their number allows."""
    place = int(np.searchsorted(options, chosen))
    low, high = options[max(place - _REACH, 0)], options[min(place + _REACH, len(options) - 1)]
    near = np.linspace(low, high, _OPTIONS).round().astype(int)
    return np.unique(np.append(near, chosen))
