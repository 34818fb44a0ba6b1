"""Channels that are not coupled and yet must lose as many: groups, chunks, and what they link.

The parts of a chunk may go on to different layers, and a grouped convolution may read two others
side by side: no channel of one part is tied to a channel of another, but all parts have to stay
equally wide. Classes that the same layers make and that stand as often in the same parts are of
one *kind*; a *step* takes so many of each kind that every balance is kept. The smallest steps are
solutions of small integer programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from nni_gconv.graph.channel_map import Balance, ChannelMap

Ints = NDArray[np.int64]

#: Where groups of many layers cut channels at random a step takes nearly all of them: so many
#: kinds are not tried, and for fewer a larger step than the least one will do.
_MOST_KINDS = 128
_NODES = 50


@dataclass(frozen=True, eq=False)
class Balanced:
    """A channel map whose classes can be removed without minding what links several layers.

    Attributes
    ----------
    channels : ChannelMap
        Classes of different layers that only together keep a balance are one class.
    links : ndarray of int64, shape (classes,)
        Number of the balance that is left to mind between channels of the same layers; -1: none.
    parts : ndarray of int64, shape (classes,)
        Part of each class there, from 0: every part must lose as many. -1: none.
    problems : dict of int to str
        Class -> why it cannot go although nothing pins it.
    """

    channels: ChannelMap
    links: Ints
    parts: Ints
    problems: dict[int, str]


def balance_classes(channels: ChannelMap, layers: Ints) -> Balanced:
    """Join classes that only together keep groups and chunks balanced.

    Parameters
    ----------
    channels : ChannelMap
        Of the model.
    layers : ndarray of int64, shape (classes,)
        Equal for classes that the same layers make; -1 for classes that cannot be removed.

    Returns
    -------
    Balanced
    """
    count = len(layers)
    links, parts, unit = np.full(count, -1), np.full(count, -1), np.arange(count)
    problems: dict[int, str] = {}
    number = 0
    for component in _components(channels, count):
        stuck = set(component.classes[layers[component.classes] >= 0].tolist())
        whole = len(stuck)
        for steps, joint in _steps(component, layers):
            if steps.size == whole and len(steps) == 1:  # all or nothing
                break
            stuck -= set(steps.reshape(-1).tolist())
            if joint:
                unit[steps] = steps[:, :1]
            else:
                links[steps], parts[steps] = number, np.arange(steps.shape[1])
                number += 1
        problems.update(dict.fromkeys(sorted(stuck), component.problem))
    roots, renumbered = np.unique(unit, return_inverse=True)
    pinned = {int(renumbered[c]): reason for c, reason in channels.pinned.items()}
    joined = replace(channels, classes=renumbered[channels.classes], pinned=pinned)
    problems = {int(renumbered[c]): reason for c, reason in problems.items()}
    return Balanced(joined, links[roots], parts[roots], problems)


@dataclass(frozen=True, eq=False)
class _Component:
    """Classes that balances link, and how often each stands in each part of these."""

    classes: Ints
    #: One matrix for each balance: classes x parts.
    times: tuple[Ints, ...]
    problem: str


def _components(channels: ChannelMap, count: int) -> Iterator[_Component]:
    tables = [(b, t) for b in channels.balances if (t := _table(channels, b, count)) is not None]
    if not tables:
        return
    classes = np.concatenate([table.indices for _, table in tables])
    balance = np.repeat(np.arange(len(tables)), [len(table.indices) for _, table in tables])
    size = count + len(tables)
    links = coo_matrix((np.ones(len(classes), np.int8), (classes, count + balance)), (size, size))
    _, component = connected_components(links, directed=False)
    for number in dict.fromkeys(component[count:].tolist()):
        mine = [entry for entry, of in zip(tables, component[count:], strict=True) if of == number]
        own = np.flatnonzero(component[:count] == number)
        yield _Component(
            own,
            tuple(table[:, own].toarray().T for _, table in mine),
            f"{mine[0][0].where} would not stay equally wide",
        )


def _table(channels: ChannelMap, balance: Balance, count: int) -> csr_matrix | None:
    """How often each class stands in each part; None if each stands as often in all of them."""
    of, parts = channels.of(balance.labels), balance.parts.numpy()
    table = csr_matrix((np.ones(len(of), np.int64), (parts, of)), (int(parts.max()) + 1, count))
    return table if (table[1:] - table[:-1]).nnz else None


def _steps(component: _Component, layers: Ints) -> Iterator[tuple[Ints, bool]]:
    """Deal classes out into steps that keep every balance.

    Yields
    ------
    steps : ndarray of int64, shape (steps, classes a step)
        Classes that go with each step, one column a class of a kind.
    joint : bool
        True when only the classes of a row keep the balance of all layers; False when those of a
        column, which the same layers make, may change places.
    """
    kinds, times = _kinds(component, layers)
    makers = np.array([layers[kind[0]] for kind in kinds])
    left = np.array([len(kind) for kind in kinds])
    if len(set(makers.tolist())) == 1 and len(set(left.tolist())) == 1 and _even(times):
        yield np.stack(kinds, axis=1), False  # groups of one layer: one of each part
        return
    while left.any() and len(kinds) <= _MOST_KINDS:
        first = int(np.argmax(left > 0))
        takes = _least_step(left, times, first)
        if takes is None:  # what it is balanced with has to stay
            left[first] = 0
            continue
        used = np.flatnonzero(takes)
        count = int((left[used] // takes[used]).min())
        ends = [len(kinds[k]) - left[k] + count * takes[k] for k in used]
        shares = [kinds[k][end - count * takes[k] : end] for k, end in zip(used, ends, strict=True)]
        steps = np.concatenate([share.reshape(count, -1) for share in shares], axis=1)
        left[used] -= count * takes[used]
        # A single step leaves nothing to choose: it is one unit, beside others of its make.
        alone = count == 1 or takes.max() > 1
        yield steps, bool(alone or len(set(makers[used].tolist())) > 1)


def _even(times: Sequence[Ints]) -> bool:
    """Tell whether one of each kind keeps every balance."""
    return all(len(set(matrix.sum(0).tolist())) == 1 for matrix in times)


def _kinds(component: _Component, layers: Ints) -> tuple[list[Ints], list[Ints]]:
    """Sort what can be removed by kind: the classes of each, and each balance's matrix."""
    of = layers[component.classes]
    rows = np.column_stack([of, *component.times])
    members: dict[bytes, list[int]] = {}
    for index in np.flatnonzero(of >= 0):
        members.setdefault(rows[index].tobytes(), []).append(int(index))
    speakers = [kind[0] for kind in members.values()]
    kinds = [component.classes[kind] for kind in members.values()]
    return kinds, [times[speakers] for times in component.times]


def _least_step(left: Ints, times: Sequence[Ints], first: int) -> Ints | None:
    """Find how many of each kind have to go with one of the first so that balances are kept."""
    differ = np.concatenate([(matrix[:, 1:] - matrix[:, :1]).T for matrix in times])
    low = np.zeros(len(left))
    low[first] = 1
    found = milp(
        np.ones(len(left)),
        options={"node_limit": _NODES},
        constraints=LinearConstraint(differ, 0, 0),
        integrality=np.ones(len(left)),
        bounds=Bounds(low, left),
    )
    return None if found.x is None else np.rint(found.x).astype(np.int64)
