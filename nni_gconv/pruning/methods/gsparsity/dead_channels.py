"""Which channels and which coupled sets have died, by norms and by what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from nni_gconv.graph import CoupledSet
from nni_gconv.pruning.selection.allocation import Request, removal_steps, take
from nni_gconv.pruning.selection.coupled_sets import taken_channels


class SetState(NamedTuple):
    """A coupled set while it is penalised.

    Attributes
    ----------
    coupled : CoupledSet
        The set.
    norms : ndarray of float, shape (n,)
        Norm of each channel in the layer where it is largest.
    asked : Request
        What its layers ask.
    limits : dict
        Arguments of :func:`~nni_gconv.pruning.selection.allocation.removal_steps`.
    """

    coupled: CoupledSet
    norms: np.ndarray
    asked: Request
    limits: dict[str, Any]


def from_threshold(request: Request) -> Request:
    """A filter lives if its norm is above the threshold, not if it reaches it."""
    if request.threshold is None:
        return request
    return replace(request, threshold=np.nextafter(request.threshold, np.inf))


def dead_sets(
    states: Sequence[SetState], threshold: float, removed: np.ndarray | None = None
) -> set[int]:
    """Positions of the sets of which every channel is dead.

    Parameters
    ----------
    states : sequence of SetState
        The sets.
    threshold : float
        Largest norm of a dead filter, where a set's layers name none.
    removed : ndarray of bool, shape (classes,), optional
        Only sets of which no channel is left but what cannot go are counted.
    """
    found = set()
    for index, (coupled, norms, asked, limits) in enumerate(states):
        free = asked.ratio is None and asked.high == 1 and limits["min_channels"] <= 1
        left = 0 if removed is None else int((~removed[coupled.classes]).sum())
        least = coupled.size - sum(map(len, asked.steps))
        if free and left <= least and norms.max(initial=0) <= _limit(asked, threshold):
            found.add(index)
    return found


def dead_classes(states: Sequence[SetState], threshold: float, removed: np.ndarray) -> np.ndarray:
    """Add the classes whose filters are all dead, as far as floors, groups and ratios let them go.

    Parameters
    ----------
    states, threshold
        As for :func:`dead_sets`.
    removed : ndarray of bool, shape (classes,)
        Those that are gone already; changed in place.

    Returns
    -------
    ndarray of bool, shape (classes,)
    """
    for coupled, norms, asked, limits in states:
        high = asked.high if asked.ratio is None else min(asked.high, asked.ratio)
        steps = removal_steps(norms, **limits)
        request = Request(norms, steps, threshold=_limit(asked, threshold), high=high)
        request = from_threshold(request)
        removed[coupled.classes[taken_channels(request, take([request])[0])]] = True
    return removed


def _limit(asked: Request, threshold: float) -> float:
    return threshold if asked.threshold is None else asked.threshold
