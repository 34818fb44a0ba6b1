"""How many channels of each set go, and which: pure functions of arrays.

The channels of a set leave in *steps*. A step is the smallest piece that can go: one channel, one
of every block where groups must stay equally wide, or as many as `round_to` asks. Ratios, global
ranking and budgets all take steps from the front of the same lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nni_gconv.pruning.selection.near_limit import CLOSE, nearest_choice
from nni_gconv.pruning.selection.scores import count

#: A share such as 0.3 * 10 is whole although its binary value is a little off.
_SLACK = 1e-9


@dataclass(frozen=True)
class Request:
    """What is asked of one coupled set.

    Attributes
    ----------
    scores : ndarray of float, shape (n,)
        Low scores go first.
    steps : list of ndarray of int
        Channels in the order they go, see :func:`removal_steps`.
    ratio : float or None
        Share of the channels to remove.
    threshold : float or None
        Remove what scores less.
    low, high : float
        Bounds of the share removed.
    group : int, str or None
        Sets of one group are ranked against each other.
    unit : float or None
        What scores are measured in where sets are ranked against each other; None: their mean.
    errors : ndarray of float, shape (steps + 1,), or None
        Error of the set once so many steps are taken. Where all sets have them a budget is dealt
        out so that their sum is least, see :mod:`nni_gconv.pruning.selection.exact`.
    """

    scores: np.ndarray
    steps: list[np.ndarray]
    ratio: float | None = None
    threshold: float | None = None
    low: float = 0.0
    high: float = 1.0
    group: int | str | None = None
    unit: float | None = None
    errors: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.scores)

    @property
    def scale(self) -> float:
        """Number by which scores are divided to compare them with those of other sets."""
        return self.unit or float(np.mean(np.abs(self.scores))) or 1.0

    def most(self) -> int:
        """Largest number of steps that the upper bound and the floor on channels allow."""
        allowed = math.floor(self.size * self.high + _SLACK)
        return int(np.searchsorted(np.cumsum([len(s) for s in self.steps]), allowed, side="right"))

    def least(self) -> int:
        """Smallest number of steps that reaches the lower bound, as far as :meth:`most` allows."""
        wanted = math.ceil(self.size * self.low - _SLACK)
        totals = np.cumsum([0, *[len(s) for s in self.steps]])
        return min(int(np.searchsorted(totals, wanted, side="left")), self.most())


def removal_steps(
    scores: np.ndarray,
    *,
    blocks: np.ndarray | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    to_empty: bool = False,
) -> list[np.ndarray]:
    """List the channels of a set in the order they can be removed.

    Parameters
    ----------
    scores : ndarray of float, shape (n,)
        Low scores go first; equal scores by index.
    blocks : ndarray of int, shape (n,), optional
        Every block loses one channel per step.
    min_channels : int
        Never keep fewer (at least one is kept anyway).
    round_to : int
        What is kept is a multiple of this wherever something is removed.
    to_empty : bool
        Whether all channels may go: for a vote, behind which others have their say.

    Returns
    -------
    list of ndarray of int

    Examples
    --------
    >>> [s.tolist() for s in removal_steps(np.array([3.0, 1.0, 2.0, 0.0]), min_channels=2)]
    [[3], [1]]
    >>> [s.tolist() for s in removal_steps(np.arange(6.0), round_to=4)]
    [[0, 1]]
    """
    size = len(scores)
    order = np.argsort(scores, kind="stable")
    width = 1
    if blocks is not None:
        width = int(blocks.max()) + 1
        ranked = [order[blocks[order] == block] for block in range(width)]
        order = np.stack(ranked, axis=1).reshape(-1)
    step = math.lcm(width, max(round_to, 1))
    steps: list[np.ndarray] = []
    begin = 0
    end = size % step or step
    while size - end >= (0 if to_empty else max(min_channels, 1)):
        steps.append(order[begin:end])
        begin, end = end, end + step
    return steps


def take(requests: Sequence[Request]) -> list[int]:
    """Decide how many steps each set loses from its ratio, threshold or global group.

    Returns
    -------
    list of int
        Steps taken from each request.
    """
    taken = [0] * len(requests)
    groups: dict[int | str, list[int]] = {}
    for i, request in enumerate(requests):
        if request.group is not None and request.ratio is not None:
            groups.setdefault(request.group, []).append(i)
        else:
            taken[i] = _own_share(request)
    for members in groups.values():
        _global_share(requests, members, taken)
    return taken


def _own_share(request: Request) -> int:
    totals = np.cumsum([0, *[len(s) for s in request.steps]])
    if request.threshold is not None:
        below = [bool((request.scores[s] < request.threshold).all()) for s in request.steps]
        wanted = below.index(False) if False in below else len(below)
    elif request.ratio is not None:
        # The nearest that can be had; of two equally near the one that keeps more.
        wanted = int(np.argmin(np.abs(totals - count(request.size, request.ratio))))
    else:
        return 0
    return min(max(wanted, request.least()), request.most())


def _global_share(requests: Sequence[Request], members: list[int], taken: list[int]) -> None:
    """Rank the steps of several sets against each other, by scores in the unit of each set."""
    goal = count(sum(requests[i].size for i in members), float(requests[members[0]].ratio or 0.0))
    queue = []
    for i in members:
        request = requests[i]
        taken[i] = request.least()
        goal -= sum(len(s) for s in request.steps[: taken[i]])
        highest = -math.inf
        for k in range(taken[i], request.most()):
            # A step cannot go before the one in front of it.
            highest = max(highest, float(request.scores[request.steps[k]].mean()) / request.scale)
            queue.append((highest, i, k))
    for _, i, k in sorted(queue):
        size = len(requests[i].steps[k])
        if size <= goal and taken[i] == k:
            taken[i] += 1
            goal -= size


def fit_budget(
    requests: Sequence[Request], cost: Callable[[Sequence[int]], float], limit: float
) -> list[int]:
    """Remove as little as brings the cost inside a limit, or everything if nothing does.

    Sets without a global group lose equal shares; sets of one group are ranked by score. After the
    limit is met, single steps are put back wherever they still fit. Where steps are so large that
    more than 1 % of the limit is left, a few steps of some sets are exchanged for steps of others,
    see :func:`~nni_gconv.pruning.selection.near_limit.nearest_choice`: steps from half to twice
    the score of the last that had to go, so that nothing dead returns for something strong; of sets
    without a group any steps if that is not enough, since their scores do not compare.

    Parameters
    ----------
    requests : sequence of Request
        The sets; ratios are ignored, bounds are kept.
    cost : callable
        Steps taken from each set -> cost of the small model.
    limit : float
        Largest allowed cost.

    Returns
    -------
    list of int
        Steps taken from each request.

    Examples
    --------
    >>> scores = np.arange(8.0)
    >>> request = Request(scores, removal_steps(scores))
    >>> fit_budget([request], lambda steps: 8 - steps[0], limit=5.5)
    [3]
    """
    floor = [r.least() for r in requests]
    if cost(floor) <= limit:
        return floor
    queue = _priorities(requests, floor)
    low, high = 0, len(queue)
    while high - low > 1:
        middle = (low + high) // 2
        fits = cost(_prefix(floor, queue, middle)) <= limit
        low, high = (low, middle) if fits else (middle, high)
    taken = _put_back(_prefix(floor, queue, high), floor, queue[:high], cost, limit)
    for free in (False, True):
        if cost(taken) >= CLOSE * limit:
            break
        least, most = _movable(requests, floor, taken, queue, high, free=free)
        order = {(i, k): place for place, (_, i, k) in enumerate(queue)}
        taken = nearest_choice(taken, most, cost, limit, least=least, order=order)
        taken = _put_back(taken, floor, queue, cost, limit)
    return taken


def fit_measured(
    requests: Sequence[Request],
    measure: Callable[[Sequence[int]], float],
    limit: float,
    *,
    start: Sequence[int] | None = None,
    calls: int = 10,
) -> tuple[list[int], float]:
    """Do what :func:`fit_budget` does for a cost that is measured: dear, and not quite monotone.

    The share that all sets lose is halved between one that fits and one that does not, until what
    fits takes 99 % of the limit. What is returned has been measured itself.

    Parameters
    ----------
    requests : sequence of Request
        The sets; ratios are ignored, bounds are kept.
    measure : callable
        Steps taken from each set -> cost of the small model.
    limit : float
        Largest allowed cost.
    start : sequence of int, optional
        Steps that are taken in any case.
    calls : int, default 10
        At most so many measurements, at least two.

    Returns
    -------
    taken : list of int
        Steps taken from each request: all that may go if even that does not fit.
    cost : float
        What was measured for them.

    Examples
    --------
    >>> scores = np.arange(8.0)
    >>> request = Request(scores, removal_steps(scores))
    >>> fit_measured([request], lambda steps: 8 - steps[0], limit=5.5)
    ([3], 5)
    """
    floor = [r.least() for r in requests]
    if start is not None:
        floor = [max(a, b) for a, b in zip(floor, start, strict=True)]
    queue = _priorities(requests, floor)
    low, high = 0, len(queue)
    taken = _prefix(floor, queue, high)
    best = measure(taken)
    if best > limit or not queue:
        return taken, best
    least = measure(floor)
    if least <= limit:
        return floor, least
    for _ in range(calls - 2):
        if high - low <= 1 or best >= CLOSE * limit:
            break
        middle = (low + high) // 2
        found = measure(_prefix(floor, queue, middle))
        if found <= limit:
            high, best = middle, found
        else:
            low = middle
    return _prefix(floor, queue, high), best


def _prefix(floor: list[int], queue: list[tuple[float, int, int]], length: int) -> list[int]:
    taken = list(floor)
    for _, i, k in queue[:length]:
        taken[i] = k + 1
    return taken


def _priorities(requests: Sequence[Request], floor: list[int]) -> list[tuple[float, int, int]]:
    queue = []
    for i, request in enumerate(requests):
        gone, highest = sum(len(s) for s in request.steps[: floor[i]]), -math.inf
        for k in range(floor[i], request.most()):
            gone += len(request.steps[k])
            if request.group is None:
                highest = gone / request.size
            else:
                highest = max(
                    highest, float(request.scores[request.steps[k]].mean()) / request.scale
                )
            queue.append((highest, i, k))
    return sorted(queue)


def _movable(
    requests: Sequence[Request],
    floor: list[int],
    taken: list[int],
    queue: list[tuple[float, int, int]],
    length: int,
    *,
    free: bool,
) -> tuple[list[int], list[int]]:
    """Fewest and most steps that exchanges may leave taken from each set."""
    border = queue[length - 1][0]
    least, most = list(floor), list(floor)
    for value, i, k in queue:
        least[i] = k + 1 if value < border / 2 else least[i]
        most[i] = k + 1 if value <= 2 * border else most[i]
    for i, request in enumerate(requests):
        if free and request.group is None:
            least[i], most[i] = floor[i], request.most()
        least[i], most[i] = min(least[i], taken[i]), max(most[i], taken[i])
    return least, most


def _put_back(
    taken: list[int],
    floor: list[int],
    queue: list[tuple[float, int, int]],
    cost: Callable[[Sequence[int]], float],
    limit: float,
) -> list[int]:
    for _, i, k in reversed(queue):
        if taken[i] == k + 1 > floor[i]:
            taken[i] = k
            if cost(taken) > limit:
                taken[i] = k + 1
    return taken
