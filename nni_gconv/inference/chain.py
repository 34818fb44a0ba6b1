"""Memory formats of layers in a chain, decided together: a change between neighbours costs time."""

from __future__ import annotations

from collections.abc import Sequence


def cheapest_path(
    costs: Sequence[Sequence[float]], changes: Sequence[float], start: int = 0
) -> list[int]:
    """Choose a state for each step so that steps and changes of state cost least in sum.

    Parameters
    ----------
    costs : sequence of sequence of float
        Cost of step i in each state.
    changes : sequence of float
        Cost of another state at step i than before it.
    start : int, default 0
        State before the first step.

    Returns
    -------
    list of int
        The states.

    Examples
    --------
    >>> cheapest_path([(3, 1), (1, 2), (3, 1)], [1, 5, 5])
    [1, 1, 1]
    >>> cheapest_path([(4, 1), (1, 9), (3, 1)], [1, 1, 1])
    [1, 0, 1]
    """
    states = range(len(costs[0])) if costs else range(0)
    sums = [0.0 if state == start else float("inf") for state in states]
    came: list[list[int]] = []
    for step, change in zip(costs, changes, strict=True):
        before = [_from(sums, change, new) for new in states]
        sums = [sums[old] + change * (old != new) + step[new] for new, old in enumerate(before)]
        came.append(before)
    path: list[int] = []
    if costs:
        state = min(states, key=sums.__getitem__)
        for before in reversed(came):
            path.append(state)
            state = before[state]
    return path[::-1]


def _from(sums: Sequence[float], change: float, new: int) -> int:
    """Return the state before that leads to a state most cheaply; the same one on a tie."""
    return min(range(len(sums)), key=lambda old: (sums[old] + change * (old != new), old != new))
