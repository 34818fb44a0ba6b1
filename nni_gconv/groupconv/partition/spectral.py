"""A start from the leading singular vectors: what the scores share on average, seen at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from nni_gconv.groupconv.partition.assignment import balanced_assignment
from nni_gconv.groupconv.partition.bounds import centred

Floats = NDArray[np.float64]


def spectral_groups(scores: Floats, num_groups: int, rounds: int = 5) -> NDArray[np.int64]:
    """Balanced k-means of the columns in the space of the G-1 leading singular vectors.

    Columns of one group look alike after double centring (Dhillon's co-clustering, with the paper's
    equal sizes). Centres start far from each other, so nothing is drawn at random.

    Parameters
    ----------
    scores : ndarray of float64, shape (F, C)
        Non-negative scores; G divides F and C.
    num_groups : int
        G.
    rounds : int, optional
        Steps of k-means.

    Returns
    -------
    ndarray of int64, shape (C,)
        Group of each column.
    """
    noise = centred(scores)
    rows, cols = noise.shape
    kept = min(max(num_groups - 1, 1), rows, cols)
    if rows < cols:
        _, left = eigh(noise @ noise.T, subset_by_index=[rows - kept, rows - 1])
        points = noise.T @ left
    else:
        energy, right = eigh(noise.T @ noise, subset_by_index=[cols - kept, cols - 1])
        points = right * np.sqrt(np.maximum(energy, 0))
    centres = points[_far_apart(points, num_groups)]
    groups = np.zeros(cols, np.int64)
    for _ in range(rounds):
        groups = balanced_assignment(points @ centres.T - 0.5 * (centres**2).sum(axis=1))
        centres = np.stack([points[groups == g].mean(axis=0) for g in range(num_groups)])
    return groups


def _far_apart(points: Floats, count: int) -> list[int]:
    """The longest point, then each time the one farthest from all before."""
    chosen = [int((points**2).sum(axis=1).argmax())]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return chosen
