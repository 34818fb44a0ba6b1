"""Pareto fronts of two measures: a cost to be small and a score to be large."""

from __future__ import annotations

from collections.abc import Iterable

Pair = tuple[float, float]


def pareto(points: Iterable[Pair]) -> list[Pair]:
    """Return the (cost, score) pairs that no other beats in both, by rising cost.

    Examples
    --------
    >>> pareto([(0.5, 0.9), (0.6, 0.8), (1.0, 0.95), (0.5, 0.7)])
    [(0.5, 0.9), (1.0, 0.95)]
    """
    front: list[Pair] = []
    for cost, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def hypervolume(points: Iterable[Pair], worst: Pair) -> float:
    """Area between a front and the point `worst` (a large cost, a small score).

    Examples
    --------
    >>> hypervolume([(0.5, 0.9)], (1.0, 0.5)), hypervolume([(2.0, 0.9)], (1.0, 0.5))
    (0.2, 0)
    """
    front = [p for p in pareto(points) if p[0] < worst[0] and p[1] > worst[1]]
    ends = [cost for cost, _ in front[1:]] + [worst[0]]
    steps = zip(front, ends, strict=False)
    return sum((end - cost) * (score - worst[1]) for (cost, score), end in steps)


def gain(points: Iterable[Pair], new: Pair, worst: Pair) -> float:
    """Return what a point would add to the hypervolume.

    Examples
    --------
    >>> gain([(0.5, 0.9)], (0.75, 1.0), (1.0, 0.5))
    0.025
    """
    points = list(points)
    return round(hypervolume([*points, new], worst) - hypervolume(points, worst), 12)
