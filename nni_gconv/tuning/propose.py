"""Which trial to run next, so that the front of cost and score gets fuller.

1. The first trials are spread over the budget axis, half of them with layers weighed alike and half
   with random weights: whoever always takes the same layers learns nothing about the others.
2. Then weights are drawn from what the finished trials leave likely (Thompson sampling), all best
   networks under these weights are found at once (one price for a unit of cost, swept), and the
   budget is taken where they would add most area to the front that has been reached, or is under
   way.
3. The integer program finds the best options within that budget.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nni_gconv.tuning.front import gain
from nni_gconv.tuning.options import Choice, Options
from nni_gconv.tuning.surrogate import Surrogate, Weights, fit

Floats = NDArray[np.float64]

#: Costs of the integer program are whole numbers: billionths of the dense network.
_UNITS = 1e9
_PRICES = 48
_RANDOM = 1.0  # spread of the logarithms of random weights
_DRAWS = 5
_CHANGES = 200


@dataclass
class Proposer:
    """Chooses options for the next trial; the same history gives the same choice.

    Attributes
    ----------
    options : Options
        What can be chosen.
    low, high : float
        Part of the budget axis to fill, shares of the dense network's cost.
    warmup : int
        Trials before what was learnt is used.
    seed : int
        Of all draws.
    learn : bool
        False: weights stay alike, for comparison.
    """

    options: Options
    low: float
    high: float
    warmup: int = 6
    seed: int = 0
    learn: bool = True
    _fitted: tuple[int, Surrogate | None] = field(default=(-1, None), init=False, repr=False)

    def surrogate(self, choices: Sequence[Choice], scores: Sequence[float]) -> Surrogate | None:
        """Return what the finished trials say; fitted once for the same number of them."""
        if self._fitted[0] != len(choices):
            self._fitted = len(choices), fit(self.options, choices, scores)
        return self._fitted[1]

    def next(
        self,
        finished: Sequence[tuple[Choice, float, float]],
        running: Sequence[Choice],
        tried: Collection[Choice],
    ) -> Choice | None:
        """Choose options that have not been tried.

        Parameters
        ----------
        finished : sequence of (choice, cost, score)
            Trials with a result.
        running : sequence of choice
            Trials without one yet.
        tried : collection of choice
            Whatever was proposed before, these and failed ones.

        Returns
        -------
        tuple of int or None
            None: everything has been tried, or nothing else is within the budgets.
        """
        number = len(tried)
        rng = np.random.default_rng([self.seed, number])
        surrogate = None
        if self.learn and number >= self.warmup:
            scores = [score for _, _, score in finished]
            surrogate = self.surrogate([choice for choice, _, _ in finished], scores)
        for draw in range(_DRAWS):
            if surrogate is not None:
                weights = surrogate.sample(rng)
                limits = self._gaps(weights, surrogate, finished, running)
            else:
                weights = self._prior(rng, alike=draw == 0 and number % 2 == 0)
                limits = [self.low + (self.high - self.low) * _corput(number + draw)]
            for limit in limits:
                found = solve_budget(self.options, weights, limit)
                if found is not None and found not in tried and self._within(found):
                    return found
        return self._neighbour(rng, finished, tried)

    def _prior(self, rng: np.random.Generator, *, alike: bool) -> Weights:
        number = len(self.options)
        spread = 0.0 if alike else _RANDOM
        # What a trial costs says how much a layer matters, until something better is known.
        layers = np.exp(spread * rng.standard_normal(number))
        free = tuple(
            np.zeros(0) if d.lost is not None else rng.random(len(d.values))
            for d in self.options.decisions
        )
        return Weights(1.0, layers, free)

    def _gaps(
        self,
        weights: Weights,
        surrogate: Surrogate,
        finished: Sequence[tuple[Choice, float, float]],
        running: Sequence[Choice],
    ) -> list[float]:
        """Budgets at which these weights promise most, best first."""
        points = [(cost, score) for _, cost, score in finished]
        points += [(self.options.cost(c), surrogate.mean.score(self.options, c)) for c in running]
        worst = (1.0 + 1e-9, min(score for _, score in points))
        promised = []
        for choice in _sweep(self.options, weights):
            cost = self.options.cost(choice)
            if self.low - 1e-9 <= cost <= self.high + 1e-9:
                new = (cost, weights.score(self.options, choice))
                promised.append((gain(points, new, worst), cost))
        promised.sort(key=lambda pair: -pair[0])
        return [cost for _, cost in promised[:3]] or [self.low]

    def _neighbour(
        self,
        rng: np.random.Generator,
        finished: Sequence[tuple[Choice, float, float]],
        tried: Collection[Choice],
    ) -> Choice | None:
        """Something near the best trials that has not been tried; anything where that fails."""
        options = self.options
        sizes = [len(decision.values) for decision in options.decisions]
        starts = [choice for choice, _, _ in finished] or [tuple(0 for _ in sizes)]
        for attempt in range(_CHANGES):
            start = list(starts[int(rng.integers(len(starts)))])
            for place in rng.integers(len(sizes), size=1 + attempt // 20):
                start[place] = int(rng.integers(sizes[place]))
            found = tuple(start)
            if found not in tried and self._within(found):
                return found
        if options.count > 100_000:
            return None
        every = (tuple(int(i) for i in index) for index in np.ndindex(*sizes))
        return next((c for c in every if c not in tried and self._within(c)), None)

    def _within(self, choice: Choice) -> bool:
        return self.low - 1e-9 <= self.options.cost(choice) <= self.high + 1e-9


def solve_budget(options: Options, weights: Weights, limit: float) -> Choice | None:
    """Return the options that lose least score within a budget; None if it cannot be reached.

    Parameters
    ----------
    options : Options
        What can be chosen.
    weights : Weights
        What each option is worth.
    limit : float
        Share of the dense network's cost.

    Examples
    --------
    >>> halves = {"_type": "choice", "_value": [1, 2], "macs": [0.5, 0.25]}
    >>> options = Options.from_space({"a": halves, "b": halves})
    >>> solve_budget(options, Weights(1.0, np.array([2.0, 1.0]), (np.zeros(0),) * 2), 0.75)
    (0, 1)
    """
    from nni_gconv.groupconv.search import ChoiceProblem, solve_exact

    losses = [weights.losses(options, i) for i in range(len(options))]
    # The options behind the dense one from small savings to large, as the solver takes them.
    orders = {i: np.argsort(-cost, kind="stable") for i, cost in options.costs.items()}
    values = [-losses[i][order] for i, order in orders.items()]
    units = [np.rint(options.costs[i][order] * _UNITS) for i, order in orders.items()]
    dense = sum(float(np.rint(cost[0] * _UNITS)) for cost in options.costs.values())
    # Half a unit of rounding a layer, so that a cost that was computed itself fits.
    room = int(dense - np.floor((1 - limit) * _UNITS)) + len(options)
    most = max(float(np.abs(np.concatenate(values)).max()), 1e-12)
    solution = solve_exact(
        ChoiceProblem([v / most for v in values], {"cost": units}, {"cost": room})
    )
    if solution is None:
        return None
    chosen = [int(np.argmin(loss)) for loss in losses]
    for i, option in zip(options.costly, solution.chosen, strict=True):
        chosen[i] = int(orders[i][option])
    return tuple(chosen)


def _sweep(options: Options, weights: Weights) -> list[Choice]:
    """Best choices for every price of a unit of cost: the convex hull of all that is possible."""
    losses = [weights.losses(options, i) for i in range(len(options))]
    ratios = []
    for i, costs in options.costs.items():
        saved = costs[0] - costs
        usable = saved > 1e-12
        ratios += list((losses[i] - losses[i][0])[usable] / saved[usable])
    positive = [r for r in ratios if r > 0] or [1.0]
    prices = np.geomspace(min(positive) / 2, max(positive) * 2, _PRICES)
    found: dict[Choice, None] = {}
    for price in prices:
        chosen = [
            int(np.argmin(loss + price * options.costs.get(i, 0.0)))
            for i, loss in enumerate(losses)
        ]
        found[tuple(chosen)] = None
    return list(found)


def _corput(number: int) -> float:
    """The van der Corput sequence 1/2, 1/4, 3/4, 1/8, ...: every prefix is spread evenly.

    Examples
    --------
    >>> [_corput(n) for n in range(5)]
    [0.5, 0.25, 0.75, 0.125, 0.625]
    """
    number, value, step = number + 1, 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        value += bit * step
        step /= 2
    return value
