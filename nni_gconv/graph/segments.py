"""Which channels may change places, and in which order they stand in the small model.

Channels that stand side by side, in the same order, wherever they appear form a *segment*: the
stream of a residual stage, the inner channels of a bottleneck, one part of a concatenation. Any
permutation of a segment, made everywhere at once, commutes with all operators that treat channels
alike, so it costs nothing: rows, columns, biases and norms are merely written down in another
order. Channels that something pins, or that a view spreads over two dimensions, keep their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from nni_gconv.graph.channel_map import ChannelMap, varying
from nni_gconv.graph.channels import flat

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NONE = -1


class Segments:
    """Runs of classes that stand together wherever they stand.

    Parameters
    ----------
    channels : ChannelMap
        Of the dense model.
    removed : ndarray of bool, shape (classes,)
        Classes that go; the others close ranks.

    Attributes
    ----------
    of : ndarray of int64, shape (classes,)
        Segment of each class; -1 for classes that go.
    place : ndarray of int64, shape (classes,)
        Place of each class in its segment, in the dense model's order.
    members : list of ndarray of int64
        Classes of each segment, in order.
    """

    def __init__(self, channels: ChannelMap, removed: Bools) -> None:
        count = len(removed)
        self._after = _followers(channels, removed, count)
        before = np.full(count, _NONE)
        linked = self._after != _NONE
        before[self._after[linked]] = np.flatnonzero(linked)
        self.of, self.place = np.full(count, _NONE), np.zeros(count, np.int64)
        self.members: list[Ints] = []
        for first in np.flatnonzero((before == _NONE) & ~removed):
            chain = [int(first)]
            while (following := int(self._after[chain[-1]])) != _NONE:
                chain.append(following)
            members = np.array(chain)
            self.of[members] = len(self.members)
            self.place[members] = np.arange(len(members))
            self.members.append(members)

    def runs(self, classes: Ints) -> Ints:
        """Number, from 0, of the segment's appearance that each position of an axis belongs to."""
        previous, current = classes[:-1], classes[1:]
        joined = (self._after[previous] == current) | (previous == current)
        return np.concatenate([[0], np.cumsum(~joined)]).astype(np.int64)


class ChannelOrder:
    """The order in which the channels that stay stand on every axis.

    Parameters
    ----------
    segments : Segments
        What may be permuted.
    ranks : mapping of int to ndarray of int64
        Segment -> new place of each of its classes; a segment that is absent keeps its order.
    """

    def __init__(
        self, segments: Segments, removed: Bools, ranks: Mapping[int, Ints] | None = None
    ) -> None:
        self._segments, self._removed = segments, removed
        self._rank = segments.place.copy()
        for segment, rank in (ranks or {}).items():
            self._rank[segments.members[segment]] = rank

    def positions(self, classes: Ints) -> Ints:
        """Return the positions of an axis that stay, in their new order.

        Parameters
        ----------
        classes : ndarray of int64, shape (n,)
            Class of each position of the axis.

        Returns
        -------
        ndarray of int64, shape (kept,)
        """
        stays = np.flatnonzero(~self._removed[classes])
        kept = classes[stays]
        if not len(kept):
            return stays
        return stays[np.lexsort((stays, self._rank[kept], self._segments.runs(kept)))]


def _followers(channels: ChannelMap, removed: Bools, count: int) -> Ints:
    """Return the class that always stands next after each class, or -1 where there is none."""
    fixed = np.zeros(count, bool)
    fixed[list(channels.pinned)] = True
    lines: dict[bytes, Ints] = {}
    for line in _lines(channels, fixed):
        kept = line[~removed[line]]
        if len(kept):
            lines.setdefault(kept.tobytes(), kept)
    if not lines:
        return np.full(count, _NONE)
    classes = np.concatenate(list(lines.values()))
    first = np.zeros(len(classes), bool)
    first[np.cumsum([0, *(len(line) for line in lines.values())])[:-1]] = True
    # A flatten repeats every channel: what moves are whole runs.
    start = np.flatnonzero(first | np.r_[True, classes[1:] != classes[:-1]])
    length = np.diff(np.r_[start, len(classes)])
    run, first = classes[start], first[start]
    beside = ~first[1:] & (length[1:] == length[:-1])
    after = _always(run, np.r_[np.where(beside, run[1:], _NONE), _NONE], count)
    before = _always(run, np.r_[_NONE, np.where(beside, run[:-1], _NONE)], count)
    both = (after != _NONE) & ~fixed
    both[both] &= (before[after[both]] == np.flatnonzero(both)) & ~fixed[after[both]]
    return np.where(both, after, _NONE)


def _always(of: Ints, seen: Ints, count: int) -> Ints:
    """For each class what is `seen` beside it, if that is the same everywhere; else -1."""
    low, high = np.full(count, count), np.full(count, _NONE)
    np.minimum.at(low, of, seen)
    np.maximum.at(high, of, seen)
    return np.where(low == high, low, _NONE)


def _lines(channels: ChannelMap, fixed: Bools) -> Iterator[Ints]:
    """Every order in which classes stand somewhere, cut where groups of channels are told apart.

    Classes that a value spreads over two of its dimensions are marked as `fixed`.
    """
    for axis in channels.axes.values():
        yield channels.of(axis.labels)
    for balance in channels.balances:
        parts = balance.parts.numpy()
        cuts = np.flatnonzero(parts[1:] != parts[:-1]) + 1
        yield from np.split(channels.of(balance.labels), cuts)
    for value in channels.values.values():
        for field in flat(value):
            classes = channels.of(field)
            if len(varying(field)) > 1:
                fixed[classes.reshape(-1)] = True
            else:
                yield classes.reshape(-1)
