"""Stratified splits that depend on a seed alone."""

from __future__ import annotations

import numpy as np

from nni_gconv.training.seeding import derive_seed


def stratified_split(
    labels: np.ndarray, count: int, seed: int, purpose: str = "validation"
) -> tuple[np.ndarray, np.ndarray]:
    """Take `count` samples with the classes in the same proportions as in `labels`.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)
        Class of each sample.
    count : int
        Samples to take, 0 <= count <= N; met exactly.
    seed : int
        Same seed, same split, on every machine.
    purpose : str
        Splits for different purposes are drawn independently.

    Returns
    -------
    rest, taken : ndarray of int64
        Ascending indices; together every sample once.

    Examples
    --------
    >>> rest, taken = stratified_split(np.array([0] * 8 + [1] * 4), 3, seed=0)
    >>> len(rest), int((taken < 8).sum()), int((taken >= 8).sum())
    (9, 2, 1)
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"count must be in [0, {len(labels)}], got {count}")
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = sizes * (count / max(len(labels), 1))
    quota = np.floor(shares).astype(int)
    # Largest remainders get what rounding down left over; ties go to the lower class.
    order = np.argsort(-(shares - quota), kind="stable")
    quota[order[: count - quota.sum()]] += 1
    rng = np.random.Generator(np.random.PCG64(derive_seed(purpose, seed)))
    taken = np.concatenate(
        [rng.permutation(np.flatnonzero(inverse == c))[:q] for c, q in enumerate(quota)]
    )
    mask = np.zeros(len(labels), dtype=bool)
    mask[taken.astype(np.int64)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
