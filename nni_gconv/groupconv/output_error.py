"""What groups cost after a refit: the part of a layer's output that kept channels cannot say.

With A the covariance of what a layer reads and w a filter, of which only the channels S stay, the
least error that least squares on S can reach is

    e(S) = w^T A w - (A w)[S]^T A[S, S]^-1 (A w)[S].

A partition in groups is good if these errors are small, where each filter keeps its group's
channels. Unlike the sum of scores, e depends on the channels together. So filters and channels are
assigned in turn: filters exactly, since with the channels fixed their errors do not depend on each
other; channels by what each is worth in each group with the others as they are (optimal brain
surgeon for those inside, one step of forward selection for those outside), checked by the error
itself, and by single exchanges in the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition import (
    Partition,
    balanced_assignment,
    numbered_by_column,
    partition,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Of the mean variance of what a layer reads: dead and repeated channels do no harm.
RIDGE = 1e-3
#: Exchanges of two channels that are looked at before it is said that none gains.
_EXCHANGES = 12
#: Rounds of assignments, and of exchanges.
_ROUNDS = 30
#: Dimensions of a matrix for each group.
_OF_GROUPS = 3


class OutputError:
    """Errors of one layer's filters for sets of channels.

    Parameters
    ----------
    weight : array, shape (F, C, ...)
        Of a convolution or linear layer.
    covariance : array, shape (C * taps, C * taps)
        Of what it reads, columns as in the flattened weight.
    ridge : float
        Of the mean of its diagonal.

    Attributes
    ----------
    energy : ndarray, shape (F,)
        Variance of each filter's output.

    Raises
    ------
    ConfigError
        The covariance does not fit the weight, or holds numbers that are not finite.

    Examples
    --------
    >>> error = OutputError([[1.0, 1.0, 1.0]], np.diag([1.0, 2.0, 3.0]), ridge=0.0)
    >>> error.of(np.array([0, 2])).round(9).tolist()
    [2.0]
    """

    def __init__(self, weight: Any, covariance: Any, ridge: float = RIDGE) -> None:
        weight = np.asarray(weight, np.float64)
        self.filters, self.channels = weight.shape[:2]
        flat = weight.reshape(self.filters, -1)
        moments = np.array(covariance, np.float64)
        if moments.shape != (flat.shape[1],) * 2 or not np.isfinite(moments).all():
            raise ConfigError(
                f"covariance: shape {moments.shape}; expected {(flat.shape[1],) * 2}, finite"
            )
        self._taps = flat.shape[1] // self.channels
        self._cross = moments @ flat.T
        self.energy: Floats = (flat * self._cross.T).sum(1)
        np.fill_diagonal(
            moments, moments.diagonal() + ridge * moments.diagonal().mean() + np.finfo(float).tiny
        )
        self._moments = moments

    def of(self, channels: Ints, filters: Ints | None = None) -> Floats:
        """Return the error of filters, all by default, that keep only these channels."""
        columns = self._columns(channels)
        chosen = slice(None) if filters is None else filters
        cross = self._cross[columns][:, chosen]
        said = cho_solve(self._factor(columns), cross)
        return np.maximum(self.energy[chosen] - (cross * said).sum(0), 0.0)

    def worth(self, channels: Ints, filters: Ints) -> Floats:
        """Return what each channel is worth to filters that keep `channels`: (C,).

        Of a channel inside, the error that its removal would add; of one outside, the error that
        its addition would take away.
        """
        inside = self._columns(channels)
        outside = np.setdiff1d(np.arange(self._moments.shape[0]), inside)
        factor = self._factor(inside)
        cross = self._cross[:, filters]
        inverse = cho_solve(factor, np.eye(len(inside)))
        weights = inverse @ cross[inside]
        worth = np.empty(self.channels)
        worth[channels] = self._energies(inverse, weights)
        others = np.setdiff1d(np.arange(self.channels), channels)
        if len(others):
            between = self._moments[np.ix_(outside, inside)]
            missing = cross[outside] - between @ weights
            rest = self._moments[np.ix_(outside, outside)] - between @ inverse @ between.T
            worth[others] = self._energies(rest, missing)
        return worth

    def _energies(self, matrix: Floats, vectors: Floats) -> Floats:
        """Sum over vectors v of v_c^T matrix_cc^-1 v_c, for each channel c of several taps."""
        count = len(matrix) // self._taps
        blocks = matrix.reshape(count, self._taps, count, self._taps)
        own = blocks[np.arange(count), :, np.arange(count), :]
        parts = vectors.reshape(count, self._taps, -1)
        return (parts * np.linalg.solve(own, parts)).sum((1, 2))

    def _columns(self, channels: Ints) -> Ints:
        channels = np.sort(channels)
        return (channels[:, None] * self._taps + np.arange(self._taps)).reshape(-1)

    def _factor(self, columns: Ints) -> Any:
        return cho_factor(self._moments[np.ix_(columns, columns)], lower=True)


def errors_of_groups(weight: Any, covariance: Any, groups: int) -> list[OutputError]:
    """Set up the errors of each group of a convolution, which reads its own channels alone.

    Parameters
    ----------
    weight : array, shape (F, C / groups, ...)
        Of the convolution.
    covariance : array, shape (groups, C / groups * taps, C / groups * taps)
        Of what each group reads; of one group the first dimension is left out.
    groups : int
        How many it has.

    Raises
    ------
    ConfigError
        The covariance does not fit the weight.

    Examples
    --------
    >>> each = errors_of_groups(np.ones((4, 1)), np.ones((2, 1, 1)), 2)
    >>> [error.energy.tolist() for error in each]
    [[1.0, 1.0], [1.0, 1.0]]
    """
    moments = np.asarray(covariance, np.float64)
    if groups == 1:
        moments = moments[None]
    if moments.ndim != _OF_GROUPS or len(moments) != groups:
        raise ConfigError(
            f"covariance: shape {moments.shape}; expected one matrix for each of {groups} groups"
        )
    blocks = np.split(np.asarray(weight, np.float64), groups)
    return [OutputError(block, own) for block, own in zip(blocks, moments, strict=True)]


def partition_by_error(
    error: OutputError, num_groups: int, scores: Any, *, restarts: int = 0, seed: int = 0
) -> Partition:
    """Split filters and channels such that the output changes least after a refit.

    Parameters
    ----------
    error : OutputError
        Of the layer.
    num_groups : int
        G; divides filters and channels.
    scores : array, shape (F, C)
        Kernel scores; their best partition is where the search begins.
    restarts : int
        Further beginnings, by scores with noise.
    seed : int
        Of the noise.

    Returns
    -------
    Partition
        `total` is the variance of the layer's outputs, `retained` what of it is left after the
        refit; there is no bound below the total.

    Examples
    --------
    >>> weight = np.array([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]])
    >>> covariance = np.eye(4)
    >>> covariance[0, 2] = covariance[2, 0] = 0.999  # one can stand for the other
    >>> found = partition_by_error(OutputError(weight, covariance), 2, np.abs(weight))
    >>> found.col_groups.tolist(), round(found.fraction, 2)
    ([0, 0, 1, 1], 0.98)
    """
    scores = np.asarray(scores, np.float64)
    generator = np.random.default_rng(seed)
    best: tuple[float, Ints, Ints] | None = None
    for start in range(1 + restarts):
        noise = generator.uniform(0.5, 1.5, scores.shape) if start else 1.0
        first = partition(scores * noise, num_groups, restarts=0)
        found = _Search(error, num_groups).run(np.array(first.col_groups))
        if best is None or found[0] < best[0] * (1 - 1e-12):
            best = found
    assert best is not None
    lost, rows, columns = best
    total = float(error.energy.sum())
    rows, columns = numbered_by_column(rows, columns)
    return Partition(rows, columns, max(total - lost, 0.0), total, total)


class _Search:
    """Alternation from one beginning."""

    def __init__(self, error: OutputError, num_groups: int) -> None:
        self.error, self.groups = error, range(num_groups)

    def run(self, columns: Ints) -> tuple[float, Ints, Ints]:
        """Return the error, and the groups of filters and of channels."""
        lost, rows = self._rows(columns)
        for _ in range(_ROUNDS):
            worth = self._worth(rows, columns)
            candidate = balanced_assignment(worth)
            moved = self._rows(candidate)
            if moved[0] < lost * (1 - 1e-9):
                columns, (lost, rows) = candidate, moved
                continue
            exchanged = self._exchanged(worth, rows, columns, lost)
            if exchanged is None:
                break
            columns = exchanged
            lost, rows = self._rows(columns)
        return lost, rows, columns

    def _rows(self, columns: Ints) -> tuple[float, Ints]:
        """Assign filters, exactly."""
        errors = np.stack([self.error.of(np.flatnonzero(columns == g)) for g in self.groups], 1)
        rows = balanced_assignment(errors.max() - errors)
        return float(errors[np.arange(len(rows)), rows].sum()), rows

    def _worth(self, rows: Ints, columns: Ints) -> Floats:
        """What each channel is worth in each group: (C, G)."""
        pairs = [(np.flatnonzero(columns == g), np.flatnonzero(rows == g)) for g in self.groups]
        return np.stack([self.error.worth(*pair) for pair in pairs], 1)

    def _exchanged(self, worth: Floats, rows: Ints, columns: Ints, lost: float) -> Ints | None:
        """Exchange two channels, those that promise most first, if that lowers the error."""
        each = np.arange(len(columns))
        move = worth[:, columns] - worth[each, columns][:, None]  # of channel i to the group of j
        gain = np.triu(move + move.T, 1)
        gain[columns[:, None] == columns] = -np.inf
        gain[np.tril_indices(len(columns))] = -np.inf
        for flat in np.argsort(-gain, axis=None)[:_EXCHANGES]:
            i, j = np.unravel_index(flat, gain.shape)
            if not np.isfinite(gain[i, j]):
                break
            candidate = columns.copy()
            candidate[i], candidate[j] = columns[j], columns[i]
            touched = {int(columns[i]), int(columns[j])}
            before = after = 0.0
            for group in touched:
                filters = np.flatnonzero(rows == group)
                before += self.error.of(np.flatnonzero(columns == group), filters).sum()
                after += self.error.of(np.flatnonzero(candidate == group), filters).sum()
            if after < before - 1e-9 * lost:
                return candidate
        return None
