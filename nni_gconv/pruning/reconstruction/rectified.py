"""What a ReLU hides need not be right: the refit of a layer that is rectified at once.

Zhang, Zou, He and Sun (2015, https://arxiv.org/abs/1505.06798) minimise the error behind the ReLU.
Where the dense network's value z before it is positive, the layer still aims at z; elsewhere any
value that is not positive is as good. With u the pruned network's value this minimises

    E |u - t|^2   over the weights and over t, where t = z if z > 0, else t <= 0,

in turn: t = min(u, 0) where it is free, then the weights by least squares for these targets. What
is asked of few weights becomes less, so that they serve what is seen better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from nni_gconv.pruning.reconstruction.least_squares import Fitted, Problem, Refit

Step = TypeVar("Step")

#: Bytes of places that are held for one layer.
_MEMORY = 2**28
#: Products of one pass over the places of a layer.
_WORK = 2**31
#: Places that stand together at least where there are more: few take less time than their sums.
_TOGETHER = 1024


def places_held(columns: int, filters: int) -> int:
    """Choose how many places of a layer are held: few where they are large or dear.

    Examples
    --------
    >>> [places_held(144, 16), places_held(2304, 512)]
    [349525, 1820]
    """
    return int(min(_MEMORY / (4 * (columns + 3 * filters)), _WORK / (columns * filters)))


@dataclass
class RectifiedPlaces:
    """Places of a layer, held: what it reads, and what a ReLU gets where the layer says nothing.

    With what the layer should say it gets z; it grows by ``slope`` with each further unit, so a
    layer that says y brings it ``z + slope (y - said)``: a linear function of what is read.

    Attributes
    ----------
    slope : Tensor, shape (filters,)
        How the value before the ReLU grows with the layer's output.
    """

    slope: Tensor
    _parts: list[_Part] = field(default_factory=list)

    def add(self, read: Tensor, said: Tensor, before: Tensor) -> None:
        """Hold places: (groups, n, columns), (n, filters) and (n, filters)."""
        # A number, not a truth: to choose by truths takes ten times as long as a product.
        free = (before <= 0).to(before)
        part = _Part(read.clone(), before - self.slope * said, before.clone(), free)
        if self._parts and len(self._parts[-1].before) + len(before) <= _TOGETHER:
            part = self._parts.pop() + part
        self._parts.append(part)

    def __add__(self, other: RectifiedPlaces) -> RectifiedPlaces:
        """Hold the places of both."""
        return RectifiedPlaces(self.slope, self._parts + other._parts)

    def widened(self, columns: Tensor, size: int) -> RectifiedPlaces:
        """Give columns new places among `size`, of which the others have read nothing but zeros."""
        wide = RectifiedPlaces(self.slope)
        for part in self._parts:
            more = part.read.new_zeros(*part.read.shape[:2], size)
            more[..., columns.to(part.read.device)] = part.read
            wide._parts.append(replace(part, read=more))
        return wide

    def __len__(self) -> int:
        """Number of places."""
        return sum(len(part.before) for part in self._parts)

    def error(self, found: Fitted) -> float:
        """Return E |relu u - relu z|^2, the ReLU left out where z is positive."""
        total = 0.0
        for part, value in self._values(found.weight, found.constant):
            missing = value - part.before
            missing -= part.moves(value)
            total += float(missing.square_().sum())
        return total / max(len(self), 1)

    def moves(self, weight: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Say how the targets move: means of their moves times what is read, and of themselves.

        Returns
        -------
        cross : Tensor of float64, shape (filters, columns)
        mean : Tensor of float64, shape (filters,)
        """
        cross: Tensor | float = 0.0
        mean: Tensor | float = 0.0
        for part, value in self._values(weight, constant):
            # Of the value before the ReLU; the layer's own follow by its slope, which is a factor.
            move = part.moves(value)
            by_group = move.view(len(move), len(part.read), -1).permute(1, 2, 0)
            cross = cross + (by_group @ part.read).flatten(0, 1).cpu().double()
            mean = mean + move.sum(0).cpu().double()
        share = torch.where(self.slope == 0, 0.0, 1 / self.slope).cpu().double() / len(self)
        return cross * share[:, None], mean * share  # type: ignore[return-value]

    def _values(self, weight: Tensor, constant: Tensor) -> Iterator[tuple[_Part, Tensor]]:
        """Give places, and what the pruned network has there before the ReLU: (n, filters)."""
        slope = self.slope.to(weight)
        scaled, shift = weight * slope[:, None], constant * slope
        for part in self._parts:
            read = part.read
            by_group = scaled.to(read).view(len(read), -1, scaled.shape[1])
            if len(read) == 1:
                value = torch.addmm(part.silent, read[0], by_group[0].mT)
            else:
                value = (read @ by_group.mT).permute(1, 0, 2).flatten(1) + part.silent
            yield part, value.add_(shift.to(read))


@dataclass(frozen=True)
class _Part:
    """Places that stand together.

    Attributes
    ----------
    read : Tensor, shape (groups, n, columns)
    silent : Tensor, shape (n, filters)
        What the ReLU gets where the layer says nothing.
    before : Tensor, shape (n, filters)
        What it gets in the dense network: z.
    free : Tensor, shape (n, filters)
        1 where any value that is not positive is as good as z, else 0.
    """

    read: Tensor
    silent: Tensor
    before: Tensor
    free: Tensor

    def __add__(self, other: _Part) -> _Part:
        """Put the places of both together."""
        return _Part(
            torch.cat([self.read, other.read], 1),
            torch.cat([self.silent, other.silent]),
            torch.cat([self.before, other.before]),
            torch.cat([self.free, other.free]),
        )

    def moves(self, value: Tensor) -> Tensor:
        """Say how far the targets move from z, where the pruned network has `value`: over it."""
        return value.clamp_(max=0).sub_(self.before).mul_(self.free)


def rectified_steps(
    start: Fitted, problem: Problem, solve: Refit, places: RectifiedPlaces
) -> Iterator[Fitted]:
    """Move targets and refit weights in turn, without an end.

    The steps look ahead as Nesterov's do: alternation alone is slow.

    Parameters
    ----------
    start : Fitted
        The least squares for targets that have not moved.
    problem : Problem
        On all places.
    solve : Refit
        Its solver, of the ridge.
    places : RectifiedPlaces
        Those that are held.
    """
    before, now = start, start
    for step in range(2**31):
        ahead = step / (step + 3)
        weight = now.weight + ahead * (now.weight - before.weight)
        constant = now.constant + ahead * (now.constant - before.constant)
        before, now = now, problem.moved(solve, *places.moves(weight, constant))
        yield now


def last_that_helps(steps: Iterable[Step], error: Callable[[Step], float]) -> Step:
    """Follow steps while an error falls, and give the last; what comes then is not asked for.

    Examples
    --------
    >>> last_that_helps([3.0, 2.0, 1.0, 1.5, 0.5], error=float)
    1.0
    """
    ahead = iter(steps)
    best = next(ahead)
    least = error(best)
    least = least if math.isfinite(least) else math.inf
    for step in ahead:
        found = error(step)
        if not found < least:
            break
        best, least = step, found
    return best
