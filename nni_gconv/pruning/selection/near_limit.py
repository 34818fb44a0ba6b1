"""Ending close to a limit although single steps are large: a search around a greedy choice.

Sets lose channels in steps. A greedy choice is below the limit by up to the smallest step that can
be put back, which is much where steps are large: narrow layers, or widths in multiples of eight.
Then a few steps of one set against a few of another may come closer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

#: A choice that takes this share of a limit is close enough.
CLOSE = 0.99
#: States that each round of the search goes on from: small problems are searched whole.
_WIDTH = 200

State = tuple[int, ...]


def nearest_choice(
    start: Sequence[int],
    most: Sequence[int],
    cost: Callable[[Sequence[int]], float],
    limit: float,
    *,
    least: Sequence[int] | None = None,
    order: Mapping[tuple[int, int], int] | None = None,
    calls: int = 2000,
) -> list[int]:
    """Find the choice within a limit that is close to it and moves the fewest steps.

    Parameters
    ----------
    start : sequence of int
        Steps taken from each set; within the limit.
    most : sequence of int
        Most steps that may be taken from each.
    cost : callable
        Steps taken from each set -> cost; does not grow with them.
    limit : float
        Largest allowed cost. From 0.99 of it a choice is close.
    least : sequence of int, optional
        Fewest steps that have to be taken from each; default 0.
    order : mapping, optional
        ``(set, step)`` -> place in the order in which steps should go. Of equally many moves those
        are made that take early steps and put back late ones.
    calls : int, default 2000
        Costs that are looked at, at most.

    Returns
    -------
    list of int
        Steps taken from each set: the nearest to the limit that was seen if none is close.

    Examples
    --------
    >>> weights = [[30, 30], [20, 20]]
    >>> def cost(steps):
    ...     return 100 - sum(sum(w[:n]) for w, n in zip(weights, steps))
    >>> nearest_choice([1, 1], [2, 2], cost, 60)  # 50; putting back any step is too much
    [0, 2]
    """
    first: State = tuple(start)
    lowest = [0] * len(first) if least is None else least
    place = order or {}
    seen, found = {first}, cost(first)
    best, best_cost, left = first, found, calls - 1
    frontier: list[tuple[float, State]] = [(0.0, first)]
    while best_cost < CLOSE * limit and frontier and left > 0:
        reached: list[tuple[float, float, State]] = []
        for damage, state in frontier:
            for moved, sign, step in _moves(state, lowest, most):
                if moved in seen or left <= 0:
                    continue
                seen.add(moved)
                left -= 1
                # Steps from later places are a pity to take and good to put back.
                reached.append((damage + sign * place.get(step, 0), cost(moved), moved))
        within = [(harm, -c, state) for harm, c, state in reached if c <= limit]
        close = [one for one in within if -one[1] >= CLOSE * limit]
        # Of those that are close the least harm; else the nearest, whatever it harms.
        for _, negative, state in [min(close)] if close else within:
            if -negative > best_cost:
                best, best_cost = state, -negative
        reached.sort(key=lambda one: (abs(one[1] - limit), one[0], one[2]))
        frontier = [(harm, state) for harm, _, state in reached[:_WIDTH]]
    return list(best)


def _moves(
    state: State, lowest: Sequence[int], most: Sequence[int]
) -> Iterator[tuple[State, int, tuple[int, int]]]:
    """Take one step more (1) or put one back (-1), with the ``(set, step)`` that moves."""
    for i, steps in enumerate(state):
        for sign in (1, -1):
            then = steps + sign
            if lowest[i] <= then <= most[i]:
                yield (*state[:i], then, *state[i + 1 :]), sign, (i, min(steps, then))
