"""Weights that say most nearly what the dense layer says, of those that a mask leaves.

With p what a layer of the pruned network reads at one place, y what the dense layer says there, and
for each filter the set S of weights its mask leaves, this minimises

    E |y - W p|^2 + ridge * mean(diag A) * |W - W0|^2        with W zero outside S,

by W[S] = W0[S] + (B - W0 A)[S] (A[S, S] + ridge)^-1 where A = E[p p^T] and B = E[y p^T]. The ridge
draws towards the weights W0 that the layer has, not towards zero: what the images do not show stays
as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nni_gconv.pruning.calibration import gram


@dataclass
class Moments:
    """Sums over places of what a layer reads and of what it should say, in float64.

    Attributes
    ----------
    read : Tensor, shape (groups, columns, columns)
        Sum of p p^T.
    cross : Tensor, shape (filters, columns)
        Sum of y p^T.
    read_sum, said_sum : Tensor, shapes (groups, columns) and (filters,)
        Sums of p and y.
    said_square : Tensor, shape (filters,)
        Sum of y^2.
    count : int
        Places.
    """

    read: Tensor
    cross: Tensor
    read_sum: Tensor
    said_sum: Tensor
    said_square: Tensor
    count: int = 0

    @classmethod
    def empty(cls, filters: int, columns: int, groups: int) -> Moments:
        """Sums over no place."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            zeros(groups, columns, columns), zeros(filters, columns), zeros(groups, columns),
            zeros(filters), zeros(filters),
        )  # fmt: skip

    def add(self, read: Tensor, said: Tensor) -> None:
        """Add places: `read` of shape (groups, n, columns), `said` of shape (n, filters)."""
        groups, n, _ = read.shape
        by_group = said.view(n, groups, -1).permute(1, 2, 0)
        self.read += gram(read).cpu()
        self.cross += (by_group @ read).flatten(0, 1).cpu().double()
        self.read_sum += read.sum(1).cpu().double()
        self.said_sum += said.sum(0).cpu().double()
        self.said_square += said.square().sum(0).cpu().double()
        self.count += n

    def __add__(self, other: Moments) -> Moments:
        """Sums over the places of both."""
        return Moments(
            self.read + other.read, self.cross + other.cross, self.read_sum + other.read_sum,
            self.said_sum + other.said_sum, self.said_square + other.said_square,
            self.count + other.count,
        )  # fmt: skip

    def widened(self, columns: Tensor, size: int) -> Moments:
        """Give columns new places among `size`, of which the others have read nothing but zeros."""
        wide = Moments.empty(len(self.cross), size, len(self.read))
        wide.read[:, columns[:, None], columns] = self.read
        wide.cross[:, columns] = self.cross
        wide.read_sum[:, columns] = self.read_sum
        wide.said_sum, wide.said_square, wide.count = self.said_sum, self.said_square, self.count
        return wide

    def means(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Return A (groups, columns, columns) and B (filters, columns), about the means or not."""
        n = max(self.count, 1)
        a, b = self.read / n, self.cross / n
        if centred:
            mean = self.read_sum / n
            a = a - mean[:, :, None] * mean[:, None, :]
            filters = len(b) // len(a)
            b = b - (self.said_sum / n)[:, None] * mean.repeat_interleave(filters, 0)
        return a, b

    def constant(self, weight: Tensor) -> Tensor:
        """Return what has to be added to W p so that it is right on average: (filters,)."""
        n = max(self.count, 1)
        mean = (self.read_sum / n).repeat_interleave(len(weight) // len(self.read_sum), 0)
        return self.said_sum / n - (weight * mean).sum(1)

    def error(self, weight: Tensor, *, centred: bool) -> float:
        """Return E |y - W p|^2, with the best constant or with none."""
        n = max(self.count, 1)
        groups = len(self.read)
        by_group = weight.view(groups, -1, weight.shape[1])
        missing = self.said_square.sum() - 2 * (weight * self.cross).sum()
        missing += (by_group @ self.read * by_group).sum()
        if centred:
            missing -= n * self.constant(weight).square().sum()
        return float(missing) / n


@dataclass(frozen=True)
class Problem:
    """The least squares of one layer on some places.

    Attributes
    ----------
    weight, kept : Tensor, shape (filters, columns)
        The weights as they are, in float64, and which of them may differ from zero.
    moments : Moments
        Of these places.
    centred : bool
        Whether the layer takes a constant.
    b : Tensor
        Mean of what should be said and what is read.
    parts : list of Alike
    """

    weight: Tensor
    kept: Tensor
    moments: Moments
    centred: bool
    b: Tensor
    parts: list[Alike]

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor, moments: Moments, *, centred: bool) -> Problem:
        """State it."""
        a, b = moments.means(centred=centred)
        return cls(weight, kept, moments, centred, b, parts_of(weight, a, kept))

    def solver(self, ridge: float) -> Refit:
        """Factor what is solved for."""
        return Refit(self.weight * self.kept, self.parts, ridge)

    def fitted(self, solve: Refit) -> Fitted:
        """Solve it."""
        weight = solve(self.b)
        return Fitted(weight, self._constant(weight))

    def moved(self, solve: Refit, cross: Tensor, mean: Tensor) -> Fitted:
        """Solve it for targets that have moved.

        Parameters
        ----------
        solve : Refit
        cross : Tensor, shape (filters, columns)
            Mean of the moves times what is read.
        mean : Tensor, shape (filters,)
            Of the moves.
        """
        if self.centred:
            read = self.moments.read_sum / max(self.moments.count, 1)
            cross = cross - mean[:, None] * read.repeat_interleave(len(cross) // len(read), 0)
        weight = solve(self.b + cross)
        return Fitted(weight, self._constant(weight, mean))

    def _constant(self, weight: Tensor, moved: Tensor | float = 0.0) -> Tensor:
        constant = self.moments.constant(weight) + moved
        return constant * self.kept.any(1) if self.centred else torch.zeros_like(constant)


@dataclass(frozen=True)
class Fitted:
    """Weights of a layer, and what has to be added to its output."""

    weight: Tensor
    constant: Tensor


def refit(weight: Tensor, a: Tensor, b: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Solve for the weights that a mask leaves.

    Parameters
    ----------
    weight : Tensor of float64, shape (filters, columns)
        The weights as they are.
    a : Tensor of float64, shape (groups, columns, columns)
        Second moments of what is read; the filters of a group stand together.
    b : Tensor of float64, shape (filters, columns)
        Moments of what should be said and what is read.
    kept : Tensor of bool, shape (filters, columns)
        Weights that may differ from zero.
    ridge : float
        Of the mean of the diagonal of `a`.

    Returns
    -------
    Tensor, shape (filters, columns)
        Zero where the mask is; unchanged where a column reads nothing but zeros.

    Examples
    --------
    >>> p = torch.randn(100, 3, dtype=torch.float64)
    >>> dense = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    >>> p[:, 2] = p[:, 0] - p[:, 1]  # the third input is known from the others
    >>> a, b = (p.T @ p)[None], dense @ p.T @ p
    >>> kept = torch.tensor([[True, True, False]])
    >>> refit(dense * kept, a, b, kept, 0.0).round(decimals=6).tolist()
    [[4.0, -1.0, 0.0]]
    """
    return Refit(weight * kept, parts_of(weight, a, kept), ridge)(b)


@dataclass(frozen=True)
class Alike:
    """Filters of which the mask leaves the same columns.

    Attributes
    ----------
    rows : Tensor of int64
        The filters.
    columns : Tensor of int64
        What the mask leaves of what is read, and is not zero throughout.
    moments : Tensor of float64, shape (columns, columns)
        Second moments of these columns.
    scale : float
        Mean of the second moments of all columns of the group: what a ridge is relative to.
    said : Tensor of float64, shape (rows, columns)
        Moments of what the weights as they are say and what is read.
    """

    rows: Tensor
    columns: Tensor
    moments: Tensor
    scale: float
    said: Tensor

    def solver(self, ridge: float) -> Callable[[Tensor], Tensor]:
        """Factor the moments, which rounding may have left not quite positive."""
        damped = self.moments.clone()
        damped.diagonal().add_(ridge * self.scale + 1e-12 * damped.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            return partial(torch.linalg.lu_solve, *torch.linalg.lu_factor(damped))
        return lambda right: torch.cholesky_solve(right, factor)


def parts_of(weight: Tensor, a: Tensor, kept: Tensor) -> list[Alike]:
    """Part the filters by what the mask leaves of them; parameters as for :func:`refit`."""
    start, found = weight * kept, []
    filters = len(weight) // len(a)
    for group in range(len(a)):
        own = slice(group * filters, (group + 1) * filters)
        live = a[group].diagonal() > 0
        scale = float(a[group].diagonal()[live].mean()) if bool(live.any()) else 0.0
        patterns, which = torch.unique(kept[own] & live, dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            columns = pattern.nonzero()[:, 0]
            if len(columns):
                rows = (which == number).nonzero()[:, 0] + own.start
                moments = reads = a[group]
                if len(columns) < len(reads):
                    reads = reads[:, columns]
                    moments = reads[columns]
                found.append(Alike(rows, columns, moments, scale, start[rows] @ reads))
    return found


class Refit:
    """The least squares of one ridge, for several `b`.

    Parameters
    ----------
    start : Tensor of float64, shape (filters, columns)
        The weights as they are, zero where the mask is.
    parts : list of Alike
    ridge : float
    """

    def __init__(self, start: Tensor, parts: list[Alike], ridge: float) -> None:
        self._start = start
        self._parts = [(part, part.solver(ridge)) for part in parts]

    def __call__(self, b: Tensor) -> Tensor:
        """Solve for these moments of what should be said and what is read."""
        fitted = self._start.clone()
        for part, solve in self._parts:
            missing = b[part.rows][:, part.columns] - part.said
            fitted[part.rows[:, None], part.columns] += solve(missing.T).T
        return fitted
