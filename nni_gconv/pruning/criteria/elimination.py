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

#: A set is emptied in at most so many rounds; in large sets several channels go at a time.
_ROUNDS = 128


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels of a set.

    Attributes
    ----------
    columns : sequence of sequences of int
        Columns of the weight that belong to each channel; none where it is not read.
    moments : Tensor of float64, shape (columns, columns)
        E[x x^T] of what all columns read.
    gram : Tensor of float64, shape (columns, columns)
        W^T W, summed over filters.
    energy : float
        E |W x|^2: what errors are relative to.
    """

    columns: Sequence[Sequence[int]]
    moments: Tensor
    gram: Tensor
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
    >>> gram = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    >>> order, error = eliminate([Reader([[0], [1], [2]], moments, gram, 4.0)])
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
    """Inverse moments and gram matrix of one reader as channels go."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        size = len(reader.moments)
        strength = ridge * float(reader.moments.diagonal().mean()) or 1.0
        damped = reader.moments + strength * torch.eye(size, dtype=torch.float64)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self._gram = reader.gram.clone()
        self._energy = max(reader.energy, 1e-300)
        self._columns = reader.columns
        # Channels that are read in as many columns are worked out together.
        self._alike: dict[int, list[int]] = {}
        for channel, columns in enumerate(reader.columns):
            if columns:
                self._alike.setdefault(len(columns), []).append(channel)

    def costs(self) -> Tensor:
        """What each channel costs now; numbers of channels that have gone mean nothing."""
        found = torch.zeros(len(self._columns), dtype=torch.float64)
        for channels in self._alike.values():
            columns = torch.tensor([list(self._columns[c]) for c in channels])
            rows, across = columns[:, :, None], columns[:, None, :]
            solved = torch.linalg.solve_ex(self._inverse[rows, across], self._gram[rows, across])
            cost = solved.result.diagonal(dim1=1, dim2=2).sum(1)
            found[torch.tensor(channels)] = cost.nan_to_num(0.0) / self._energy
        return found

    def remove(self, channels: Tensor) -> None:
        """Let the others answer for these channels."""
        gone = torch.tensor([c for channel in channels.tolist() for c in self._columns[channel]])
        if not len(gone):
            return
        inner, across = self._inverse[gone][:, gone], self._inverse[gone]
        answer = torch.linalg.solve(inner, across)
        lost = self._gram[:, gone] @ answer
        self._gram += answer.T @ (self._gram[gone][:, gone] @ answer) - lost - lost.T
        self._inverse -= across.T @ answer
        for matrix in (self._inverse, self._gram):
            matrix[gone] = 0
            matrix[:, gone] = 0
        self._inverse[gone, gone] = 1  # no longer read; keeps the blocks of the rest solvable
