r"""Proven upper bounds on the mass that G balanced groups can retain.

Write the groups as a 0/1 matrix M of shape (F, C). Every partition satisfies

* *rows*: each row of M has C/G ones, so the C/G heaviest scores of each row bound the mass
  (columns likewise);
* *spectrum*: ``M = 1/G + M'`` where M' has G-1 singular values ``sqrt(F C) / G`` and is orthogonal
  to constants, so by von Neumann and Ky Fan
  ``<S, M> <= sum(S)/G + sqrt(F C)/G (s_1 + ... + s_{G-1})``, s the singular values of the doubly
  centred scores.

Splitting ``S = Z + (S - Z)`` bounds the mass by *spectrum(Z) + rows(S - Z)* for every Z. This is
convex in Z; its minimum also contains the transportation relaxation, whose column prices are
column offsets of Z. A few Polyak subgradient steps tighten the better of the two parts at once,
and any step may be the last: each value is a bound.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Floats = NDArray[np.float64]

#: What rounding may take from a sum of this many terms, with a wide margin.
_SLACK = 1e-11


def upper_bound(
    scores: Floats, num_groups: int, retained: float, steps: int | None = None
) -> float:
    """Best bound of this module that a small effort affords.

    Parameters
    ----------
    scores : ndarray of float64, shape (F, C)
        Non-negative scores; G divides F and C.
    num_groups : int
        G.
    retained : float
        Mass of a known partition: the aim of the subgradient steps, and a floor.
    steps : int, optional
        Subgradient steps; by default what about a twentieth of a second affords, at most 100.

    Returns
    -------
    float
        No partition retains more.

    Examples
    --------
    >>> import numpy as np
    >>> round(upper_bound(np.kron(np.eye(2), np.ones((3, 3))), 2, 18.0), 6)
    18.0
    """
    bound = min(row_bound(scores, num_groups), row_bound(scores.T, num_groups))
    if bound > retained * (1 + 1e-9):
        bound = min(bound, spectral_bound(scores, num_groups)[0])
    if bound > retained * (1 + 1e-9):
        if steps is None:
            small, large = sorted(scores.shape)
            steps = int(min(100, 0.05 / (1e-4 + small * small * (large + 2 * small) * 3e-10)))
        bound = min(bound, dual_bound(scores, num_groups, retained, steps))
    return max(retained, bound)


def row_bound(scores: Floats, num_groups: int) -> float:
    """Sum over rows of their C/G largest scores."""
    width = scores.shape[1] // num_groups
    top = np.partition(scores, scores.shape[1] - width, axis=1)[:, -width:]
    return float(top.sum()) * (1 + _SLACK)


def spectral_bound(scores: Floats, num_groups: int) -> tuple[float, Floats]:
    """Bound by the G-1 largest singular values, and a subgradient of it, shape (F, C)."""
    if scores.shape[0] > scores.shape[1]:
        value, slope = spectral_bound(scores.T, num_groups)
        return value, slope.T
    rows, cols = scores.shape
    noise = centred(scores)
    radius = math.sqrt(rows * cols) / num_groups
    gram = noise @ noise.T
    kept = min(num_groups - 1, rows)
    energy, vectors = eigh(gram, subset_by_index=[rows - kept, rows - 1])
    # Squaring costs half of the digits: what rounding may have hidden is added to each.
    hidden = 8 * np.finfo(float).eps * rows * max(float(np.trace(gram)), 0.0)
    singular = np.sqrt(np.maximum(energy, 0) + hidden)
    value = scores.sum() / num_groups + radius * singular.sum()
    value += _SLACK * float(np.abs(scores).sum())
    unit = vectors / np.maximum(singular, 1e-300)
    slope = 1 / num_groups + radius * (unit @ (vectors.T @ noise))
    return float(value), slope


def dual_bound(scores: Floats, num_groups: int, retained: float, steps: int) -> float:
    """Smallest value of *spectrum(Z) + rows(S - Z)* met on a subgradient path from Z = S."""
    width = scores.shape[1] // num_groups
    part, best, pace, stalled = scores.copy(), np.inf, 1.0, 0
    for _ in range(steps):
        spectral, slope = spectral_bound(part, num_groups)
        rest = scores - part
        top = np.argpartition(rest, rest.shape[1] - width, axis=1)[:, -width:]
        heaviest = np.take_along_axis(rest, top, axis=1)
        value = spectral + float(heaviest.sum()) + _SLACK * float(np.abs(heaviest).sum())
        stalled = 0 if value < best * (1 - 1e-4) else stalled + 1
        best = min(best, value)
        if stalled == 5:
            pace, stalled = pace * 0.7, 0
        slope[np.arange(len(slope))[:, None], top] -= 1
        norm = float((slope**2).sum())
        if norm < 1e-18 or best <= retained:
            break
        part -= pace * (value - retained) / norm * slope
    return best


def centred(scores: Floats) -> Floats:
    """Scores less their row and column means."""
    noise = scores - scores.mean(axis=0)
    noise -= noise.mean(axis=1, keepdims=True)
    return noise
