"""Second-order choice: the channel goes that costs least after the others have made up for it.

Optimal brain surgeon (Hassibi and Stork 1993) with channels as units, as in structured second-order
pruning (Kurtic et al. 2022; Frantar and Alistarh 2022). A layer with weights W reads columns x,
A = E[x x^T], H = (A + ridge)^-1. Taking the columns J of one channel and letting the others answer
costs

    tr(W[:, J] H[J, J]^-1 W[:, J]^T)

of squared error of the layer's output; then W loses W[:, J] H[J, J]^-1 H[J, :] and H loses
H[:, J] H[J, J]^-1 H[J, :], and the next channel is chosen. A channel that several layers read costs
the sum over them, each relative to the energy of its own output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nni_gconv.pruning.calibration import gram

#: A set is emptied in at most so many rounds; in large sets several channels go at a time.
_ROUNDS = 128
#: The share of a layer's columns that goes before the others begin anew.
_ANEW = 0.25


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels of a set.

    Attributes
    ----------
    columns : sequence of sequences of int
        Columns of the weight that belong to each channel; none where it is not read.
    moments : Tensor of float64, shape (columns, columns)
        E[x x^T] of what all columns read.
    weight : Tensor of float64, shape (filters, columns)
        What it multiplies them with.
    energy : float
        E |W x|^2: what errors are relative to.
    """

    columns: Sequence[Sequence[int]]
    moments: Tensor
    weight: Tensor
    energy: float


def eliminate(readers: Sequence[Reader], *, ridge: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Remove the channels of a set one after the other, the cheapest first.

    Parameters
    ----------
    readers : sequence of Reader
        At least one; all speak of the same channels.
    ridge : float, default 1e-3
        Of the mean of each layer's diagonal of moments.

    Returns
    -------
    order : ndarray of int64, shape (channels,)
        The channels as they go.
    error : ndarray of float64, shape (channels,)
        Error of the set once each of them has gone, in that order; it never falls.

    Examples
    --------
    >>> moments = torch.eye(3, dtype=torch.float64)
    >>> moments[0, 1] = moments[1, 0] = 0.99  # the first two say nearly the same
    >>> weight = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)).sqrt()
    >>> order, error = eliminate([Reader([[0], [1], [2]], moments, weight, 4.0)])
    >>> order.tolist()
    [1, 2, 0]
    """
    states = [_State(reader, ridge) for reader in readers]
    count = len(readers[0].columns)
    alive = torch.ones(count, dtype=torch.bool)
    together = -(-count // _ROUNDS)
    order, error, total = [], [], 0.0
    while bool(alive.any()):
        costs = sum(state.costs() for state in states)
        costs = torch.where(alive, costs, torch.inf)  # type: ignore[arg-type]
        going = costs.argsort(stable=True)[: min(together, int(alive.sum()))]
        for channel in going.tolist():
            total += max(float(costs[channel]), 0.0)
            order.append(channel)
            error.append(total)
        alive[going] = False
        for state in states:
            state.remove(going)
    return np.array(order), np.array(error)


class _State:
    """Inverse moments and weights of one reader as channels go.

    With S all columns that have gone, the inverse moments are H - Y^T Y, where Y has a row for each
    of S: only rows that are needed, and the block of each channel on the diagonal, are worked out.
    Once a quarter of the columns has gone the others begin anew on inverse moments of their own,
    so that no work is done for what has gone, and most of what is left is one large product.
    """

    def __init__(self, reader: Reader, ridge: float) -> None:
        size = len(reader.moments)
        strength = ridge * float(reader.moments.diagonal().mean()) or 1.0
        damped = reader.moments.clone()
        damped.diagonal().add_(strength)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        # Errors see the weights through W^T W alone: a factor of it serves, where that is smaller.
        tall = len(reader.weight) > size
        weight = torch.linalg.qr(reader.weight, mode="r").R if tall else reader.weight
        self._energy = max(reader.energy, 1e-300)
        self._dead: list[int] = []
        self._columns = [torch.tensor(list(own), dtype=torch.int64) for own in reader.columns]
        # Columns that are read of no channel of the set never go, and nothing else asks for them.
        own = torch.cat(self._columns)
        self._begin(_square(inverse, own), weight.T[own])

    def _begin(self, inverse: Tensor, weight: Tensor) -> None:
        """Number the columns of the channels that are left anew; none of them has gone."""
        lengths = [len(own) for own in self._columns]
        self._columns = list(torch.arange(len(inverse)).split(lengths))
        self._inverse, self._weight = inverse, weight  # (columns, columns), (columns, filters)
        self._rows, self._gone = inverse.new_empty(len(inverse), len(inverse)), 0
        # Channels that are read in as many columns are worked out together.
        alike: dict[int, list[int]] = {}
        for channel, length in enumerate(lengths):
            if length:
                alike.setdefault(length, []).append(channel)
        self._alike = [_Alike.of(c, self._columns, inverse) for c in alike.values()]

    def costs(self) -> Tensor:
        """What each channel costs now; numbers of channels that have gone mean nothing."""
        found = torch.zeros(len(self._columns), dtype=torch.float64)
        for alike in self._alike:
            own = alike.of_each(self._weight)
            if own.shape[1] == 1:
                cost = own.square().sum((1, 2)) / alike.blocks[:, 0, 0]
            else:
                solved = torch.linalg.solve_ex(alike.blocks, own @ own.mT)
                cost = solved.result.diagonal(dim1=1, dim2=2).sum(1)
            found[alike.channels] = cost.nan_to_num(0.0) / self._energy
        return found

    def remove(self, channels: Tensor) -> None:
        """Let the others answer for these channels."""
        gone = torch.cat([self._columns[channel] for channel in channels.tolist()])
        if not len(gone):
            return
        before = self._rows[: self._gone]
        rows = self._inverse[gone].addmm_(before[:, gone].T, before, alpha=-1)
        factor = _factor(rows[:, gone])
        new = torch.linalg.solve_triangular(factor, rows, upper=False)
        lost = torch.linalg.solve_triangular(factor, self._weight[gone], upper=False)
        self._weight.addmm_(new.T, lost, alpha=-1)
        self._rows[self._gone : self._gone + len(gone)] = new
        self._gone += len(gone)
        self._dead += channels.tolist()
        if self._gone >= _ANEW * len(self._inverse):
            self._begin_anew()
            return
        for alike in self._alike:
            own = alike.of_each(new.T)
            alike.blocks.baddbmm_(own, own.mT, alpha=-1)
        self._settle(channels)

    def _begin_anew(self) -> None:
        for channel in self._dead:
            self._columns[channel] = self._columns[channel][:0]
        own = torch.cat(self._columns)
        lost = gram(self._rows[: self._gone, own])
        self._begin(_square(self._inverse, own).sub_(lost), self._weight[own])

    def _settle(self, channels: Tensor) -> None:
        """Keep the blocks of what has gone solvable; they are no longer read."""
        for alike in self._alike:
            alike.blocks[torch.isin(alike.channels, channels)] = torch.eye(
                alike.columns.shape[1], dtype=torch.float64
            )


@dataclass(frozen=True)
class _Alike:
    """Channels with as many columns each, and their blocks of the inverse moments."""

    channels: Tensor
    columns: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, channels: list[int], columns: Sequence[Tensor], inverse: Tensor) -> _Alike:
        """Take the blocks out of the inverse."""
        own = torch.stack([columns[channel] for channel in channels])
        return cls(torch.tensor(channels), own, inverse[own[:, :, None], own[:, None, :]])

    def of_each(self, rows: Tensor) -> Tensor:
        """Take the rows of each channel's columns out of (columns, n): (channels, columns, n)."""
        first, flat = int(self.columns[0, 0]), self.columns.flatten()
        if torch.equal(flat, torch.arange(first, first + len(flat))):  # no copy is needed
            return rows[first : first + len(flat)].unflatten(0, self.columns.shape)
        return rows[self.columns]


def _square(matrix: Tensor, index: Tensor) -> Tensor:
    """Take rows and columns of the same numbers; all of them are not copied."""
    if torch.equal(index, torch.arange(len(matrix))):
        return matrix
    return matrix[index][:, index]


def _factor(block: Tensor) -> Tensor:
    """Return the Cholesky factor of a block, which rounding may have left not quite positive."""
    scale = float(block.diagonal().abs().mean())
    for extra in (0.0, *(scale * 10.0**power for power in range(-12, 3))):
        damped = block.clone()
        damped.diagonal().add_(extra)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return factor
    return block.new_ones(len(block)).diag()
