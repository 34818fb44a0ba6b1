"""What is summed up of one layer on the way to its refit: only of what masks leave, and is alive.

Channels that have gone read zeros at every place; their columns would cost time and memory for
nothing. Which these are is seen, not concluded: a channel that shows another number in a later
batch is taken in then, and what was summed up before is right as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph import Values
from nni_gconv.pruning.calibration import AT_A_TIME, joined, places_for, read_samples
from nni_gconv.pruning.reconstruction.layers import Layer
from nni_gconv.pruning.reconstruction.least_squares import Fitted, Moments, Problem
from nni_gconv.pruning.reconstruction.rectified import (
    RectifiedPlaces,
    last_that_helps,
    places_held,
    rectified_steps,
)
from nni_gconv.pruning.reconstruction.settings import PLACES

#: Most moves of the targets of a layer in front of a ReLU.
_STEPS = 6
#: Bytes of places that wait for those of further batches: together they stay below what is given
#: back to the system at once, and cleared anew for the next.
_WAITING = 3 * 2**23


class LayerSums:
    """Moments of one layer, over every second image and over the others.

    Parameters
    ----------
    layer : Layer
    weight : Tensor of float64, shape (filters, columns)
        Of the masked network.
    alive : Tensor of bool, shape (filters, columns)
        Weights that its mask leaves.
    batches : int
        How often :meth:`add` will be called.
    each : int
        Places for each column, at least.
    quick : bool
        An eighth of the places is looked at, and no ReLU behind the layer.
    """

    def __init__(
        self,
        layer: Layer,
        weight: Tensor,
        alive: Tensor,
        batches: int,
        *,
        each: int = PLACES,
        quick: bool = False,
    ) -> None:
        self.layer = layer
        self._weight, self._alive, self._batches, self._quick = weight, alive, batches, quick
        self._each = each
        self._groups = 1 if layer.geometry is None else layer.geometry.groups
        self._taps = 1 if layer.geometry is None else math.prod(layer.geometry.kernel)
        if self._groups == 1 and bool(alive.any()):
            self._rows = alive.any(1).nonzero()[:, 0]
        else:
            self._rows = torch.arange(len(weight))
        self._channels = torch.zeros(0, dtype=torch.int64)
        self._halves = [_Half(Moments.empty(len(self._rows), 0, self._groups)) for _ in range(2)]

    def add(self, values: tuple[Values, Values], generator: torch.Generator) -> None:
        """Add places of one batch."""
        layer, axis = self.layer, -1 if self.layer.geometry is None else 1
        dense, pruned = values
        read, shape = pruned[cast("Node", layer.node.args[0])], dense[layer.node].shape
        width = len(self._rows)
        rows = slice(None) if width == len(self._weight) else self._rows.to(read.device)
        slope = None if self._quick else layer.slope(values)
        if slope is not None:
            for half in self._halves:
                if half.rectified is None:
                    half.rectified = RectifiedPlaces(slope[rows])
        self._see(read, axis)
        columns = len(self._channels) * self._taps
        most = places_for(columns, self._each)
        places = max(most / 8, 2 * columns) if self._quick else most
        some = self._groups == 1 and len(self._channels) < read.shape[axis]
        channels = self._channels if some else None
        every = None if slope is None else math.ceil(most / places_held(columns, width))
        for part, found, at in read_samples(
            read, shape, layer.geometry, places / self._batches, generator, 2, channels
        ):
            wanted, before = layer.wanted(values, at, every)
            wanted, held = wanted[:, rows], None
            if before is not None:
                held = found[:, ::every], wanted[::every], before[:, rows]
            self._halves[part].add(found, wanted, held)

    def _see(self, read: Tensor, axis: int) -> None:
        """Take channels in that are not zero throughout, and that a weight is left for."""
        every = self._weight.shape[1] // self._taps
        if self._groups == 1:
            left = self._alive.any(0).view(every, self._taps).any(1)
            shown = torch.zeros_like(left)
            shown[self._channels] = True
            for samples in (read[:1], read[1:]):  # nearly all show something in the first
                if len(samples) and not torch.equal(shown, left):
                    shown |= left & _shows(samples, axis).cpu()
            if not bool(shown.any()):
                shown[0] = True
            channels = shown.nonzero()[:, 0]
        else:
            channels = torch.arange(every)
        if len(channels) == len(self._channels):
            return
        places = self._columns(torch.searchsorted(channels, self._channels))
        size, self._channels = len(channels) * self._taps, channels
        for half in self._halves:
            half.widen(places, size)

    def _columns(self, channels: Tensor) -> Tensor:
        return (channels[:, None] * self._taps + torch.arange(self._taps)).flatten()

    def fitted(self, ridges: Sequence[float]) -> Fitted:
        """Fit with every second image, choose by the others, and fit with all."""
        where = self._rows[:, None], self._columns(self._channels)
        found = self._fitted(self._weight[where], self._alive[where], ridges)
        weight = self._weight.clone()
        weight[where] = found.weight
        constant = weight.new_zeros(len(weight))
        constant[self._rows] = found.constant
        return Fitted(weight, constant)

    def _fitted(self, masked: Tensor, alive: Tensor, ridges: Sequence[float]) -> Fitted:
        centred = self.layer.takes_constant
        state = partial(Problem.of, masked, alive, centred=centred)
        for each in self._halves:
            each.settle()
        fit, check = self._halves
        half, whole = state(fit.moments), fit.moments + check.moments
        best, ridge = check.moments.error(masked, centred=centred), None
        found, chosen = Fitted(masked, whole.constant(masked) * alive.any(1)), None
        for candidate in ridges:
            solve = half.solver(candidate)
            fitted = half.fitted(solve)
            error = check.moments.error(fitted.weight, centred=centred)
            if error < best:
                best, ridge, found, chosen = error, candidate, fitted, solve
        if ridge is None or chosen is None:
            return found
        problem = state(whole)
        solve = problem.solver(ridge)
        everything = problem.fitted(solve)
        if fit.rectified is None or check.rectified is None:
            return everything
        # As many moves of the targets in front of the ReLU as serve best; then one by all images.
        moved = islice(rectified_steps(found, half, chosen, fit.rectified), _STEPS)
        last = last_that_helps(chain([found], moved), check.rectified.error)
        if last is found:
            return everything
        return next(rectified_steps(last, problem, solve, fit.rectified + check.rectified))


def _shows(x: Tensor, axis: int) -> Tensor:
    """Tell which channels differ from zero anywhere."""
    others = [dim for dim in range(x.dim()) if dim != axis % x.dim()]
    # Extremes are found without a copy, as truths are not.
    return (x.amax(others) != 0) | (x.amin(others) != 0)


@dataclass
class _Half:
    """What is summed up over half of the images.

    Places of one batch wait for those of the next until they are many: one large product takes less
    time than small ones whose results are added up, each as large as the sum.

    Attributes
    ----------
    moments : Moments
    rectified : RectifiedPlaces or None
        What a ReLU behind the layer gets; None where none follows.
    """

    moments: Moments
    rectified: RectifiedPlaces | None = None
    _waiting: list[tuple[Tensor, Tensor, tuple[Tensor, ...] | None]] = field(default_factory=list)

    def add(self, read: Tensor, said: Tensor, held: tuple[Tensor, ...] | None) -> None:
        """Add places, and those of them that are held for a ReLU."""
        count = len(said) + sum(len(one[1]) for one in self._waiting)
        if count > AT_A_TIME:
            self.settle()
        self._waiting.append((read, said, held))
        columns = read.shape[0] * read.shape[2]
        if count >= AT_A_TIME or 4 * columns * count >= _WAITING:
            self.settle()

    def settle(self) -> None:
        """Sum up what waits."""
        if not self._waiting:
            return
        reads, saids, holds = zip(*self._waiting, strict=True)
        self._waiting = []
        self.moments.add(joined(reads, 1), joined(saids))
        if self.rectified is not None:
            held, wanted, before = zip(*holds, strict=True)
            self.rectified.add(joined(held, 1), joined(wanted), joined(before))

    def widen(self, columns: Tensor, size: int) -> None:
        """Give columns new places among `size`."""
        self.settle()
        self.moments = self.moments.widened(columns, size)
        if self.rectified is not None:
            self.rectified = self.rectified.widened(columns, size)
