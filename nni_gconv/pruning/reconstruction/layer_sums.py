"""What is summed up of one layer on the way to its refit: only of what masks leave, and is alive.

Channels that have gone read zeros at every place; their columns would cost time and memory for
nothing. Which these are is seen, not concluded: a channel that shows another number in a later
batch is taken in then, and what was summed up before is right as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph import Values
from nni_gconv.pruning.calibration import places_for, read_samples
from nni_gconv.pruning.reconstruction.layers import Layer
from nni_gconv.pruning.reconstruction.least_squares import Fitted, Moments, Problem, Refit
from nni_gconv.pruning.reconstruction.rectified import (
    RectifiedPlaces,
    places_held,
    rectified_steps,
    steps_that_help,
)

#: Most moves of the targets of a layer in front of a ReLU.
_STEPS = 6


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
    quick : bool
        Half of the places are looked at, and no ReLU behind the layer.
    """

    def __init__(
        self, layer: Layer, weight: Tensor, alive: Tensor, batches: int, *, quick: bool = False
    ) -> None:
        self.layer = layer
        self._weight, self._alive, self._batches, self._quick = weight, alive, batches, quick
        self._groups = 1 if layer.geometry is None else layer.geometry.groups
        self._taps = 1 if layer.geometry is None else math.prod(layer.geometry.kernel)
        if self._groups == 1 and bool(alive.any()):
            self._rows = alive.any(1).nonzero()[:, 0]
        else:
            self._rows = torch.arange(len(weight))
        self._channels = torch.zeros(0, dtype=torch.int64)
        self._fit, self._check = (Moments.empty(len(self._rows), 0, self._groups) for _ in range(2))
        #: What the same two halves of the images hold for a ReLU; None where none follows.
        self._rectified: tuple[RectifiedPlaces, RectifiedPlaces] | None = None

    def add(self, values: tuple[Values, Values], generator: torch.Generator) -> None:
        """Add places of one batch."""
        layer, axis = self.layer, -1 if self.layer.geometry is None else 1
        dense, pruned = values
        read, shape = pruned[cast("Node", layer.node.args[0])], dense[layer.node].shape
        width = len(self._rows)
        rows = slice(None) if width == len(self._weight) else self._rows.to(read.device)
        slope = None if self._quick else layer.slope(values)
        if slope is not None and self._rectified is None:
            self._rectified = RectifiedPlaces(slope[rows]), RectifiedPlaces(slope[rows])
        self._see(read, axis)
        columns = self._fit.cross.shape[1]
        most = places_for(columns)
        places = most / 2 if self._quick else most
        channels: Tensor | None = None
        if self._groups == 1 and len(self._channels) < read.shape[axis]:
            # Before or with the gathering, whichever copies less.
            if read.numel() < columns * places / self._batches:
                read = read.index_select(axis, self._channels.to(read.device))
            else:
                channels = self._channels
        every = math.ceil(most / places_held(columns, width))
        for part, found, at in read_samples(
            read, shape, layer.geometry, places / self._batches, generator, 2, channels
        ):
            wanted = layer.wanted(values, at)[:, rows]
            (self._fit, self._check)[part].add(found, wanted)
            if slope is not None and self._rectified is not None:
                before = layer.before_relu(values, at.every(every))[:, rows]
                self._rectified[part].add(found[:, ::every], wanted[::every], before)

    def _see(self, read: Tensor, axis: int) -> None:
        """Take channels in that are not zero throughout, and that a weight is left for."""
        every = self._weight.shape[1] // self._taps
        if self._groups == 1:
            left = self._alive.any(0).view(every, self._taps).any(1)
            shown = torch.zeros_like(left)
            shown[self._channels] = True
            # Nearly all show something in the first sample; the others alone are looked for.
            for samples in (read[:1], read[1:]):
                asked = (left & ~shown).nonzero()[:, 0]
                found = samples.index_select(axis, asked.to(read.device)) != 0
                shown[asked] = found.movedim(axis, 0).flatten(1).any(1).cpu()
            if not bool(shown.any()):
                shown[0] = True
            channels = shown.nonzero()[:, 0]
        else:
            channels = torch.arange(every)
        if len(channels) == len(self._channels):
            return
        places = self._columns(torch.searchsorted(channels, self._channels))
        size, self._channels = len(channels) * self._taps, channels
        self._fit, self._check = (m.widened(places, size) for m in (self._fit, self._check))
        if self._rectified is not None:
            fit, check = self._rectified
            self._rectified = fit.widened(places, size), check.widened(places, size)

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
        half, whole = state(self._fit), self._fit + self._check
        best, ridge = self._check.error(masked, centred=centred), None
        found, chosen = Fitted(masked, whole.constant(masked) * alive.any(1)), None
        for candidate in ridges:
            solve = half.solver(candidate)
            fitted = half.fitted(solve)
            error = self._check.error(fitted.weight, centred=centred)
            if error < best:
                best, ridge, found, chosen = error, candidate, fitted, solve
        if ridge is None or chosen is None:
            return found
        number = self._steps(found, half, chosen)
        problem = state(whole)
        solve = problem.solver(ridge)
        everything = problem.fitted(solve)
        if self._rectified is None:
            return everything
        fit, check = self._rectified
        again = rectified_steps(everything, problem, solve, fit + check)
        return [everything, *islice(again, number)][-1]

    def _steps(self, start: Fitted, problem: Problem, solve: Refit) -> int:
        """Say how many moves of the targets in front of a ReLU serve best."""
        if self._rectified is None:
            return 0
        fit, check = self._rectified
        tried = chain([start], islice(rectified_steps(start, problem, solve, fit), _STEPS))
        return steps_that_help(check.error(t.weight, t.constant) for t in tried)
