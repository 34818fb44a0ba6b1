"""One walk through dense and pruned network side by side: each layer is refitted when it is met.

He, Zhang and Sun (2017) fit each pruned layer to the dense one on the dense network's inputs. Here
the inputs are the pruned network's own as it is by then, and the targets the dense network's, so
that a layer also makes up for what those before it have lost; where it ends in a sum, for what the
other summand lacks as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph import Graph, Replay, Values, shape_of
from nni_gconv.pruning.calibration import places_for, read_samples
from nni_gconv.pruning.reconstruction.layers import Layer, find_layers
from nni_gconv.pruning.reconstruction.least_squares import Moments, refit
from nni_gconv.pruning.reconstruction.rectified import (
    Fitted,
    RectifiedPlaces,
    fewest_errors,
    places_held,
    rectified_steps,
)
from nni_gconv.training import counting

#: Tensors of one network by dotted name.
State = dict[str, Tensor]

#: Strengths that each layer chooses from.
RIDGES = (1e-3, 1e-2, 1e-1)
#: Most moves of the targets of a layer in front of a ReLU.
_STEPS = 6


def masked_state(dense: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> State:
    """Copy the tensors of a network, zero where masks are."""
    return {n: t * kept[n].to(t) if n in kept else t.clone() for n, t in dense.items()}


@dataclass
class Walk:
    """Refit a pruned network layer by layer.

    Parameters
    ----------
    graph : Graph
        Of the dense network, traced with a batch of the shape of each of `batches`.
    batches : sequence of Tensor
        Calibration images. One batch: every layer is refitted as it is met. Several: the layers
        are refitted in `rounds` of neighbours, each of which runs all batches.
    ridges : sequence of float
        See :func:`~nni_gconv.pruning.reconstruction.least_squares.refit`. Which of them serves
        each layer best is seen on every second image; where none does, the layer stays as it is.
    rounds : int
    seed : int
    progress : bool
        Whether a bar counts the layers on a terminal.
    """

    graph: Graph
    batches: Sequence[Tensor]
    ridges: Sequence[float] = RIDGES
    rounds: int = 8
    seed: int = 0
    progress: bool = False
    left: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._replay = Replay(self.graph)
        self._layers, self.left = find_layers(self.graph)

    def refit(
        self,
        dense: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        begin: Mapping[str, Tensor] | None = None,
    ) -> State:
        """Return the tensors of the pruned network, refitted.

        Parameters
        ----------
        dense : mapping of str to Tensor
            Parameters and buffers of the dense network.
        kept : mapping of str to bool Tensor
            Masks by parameter name; a parameter without one is whole.
        begin : mapping of str to Tensor, optional
            Tensors of the pruned network to begin with; default: the dense ones.
        """
        pruned = masked_state(dense if begin is None else begin, kept)
        with counting("layers refitted", len(self._layers), enabled=self.progress) as done:
            for layers in self._rounds():
                self._refit(layers, dense, pruned, kept, done)
        return pruned

    def _refit(
        self,
        layers: Sequence[Layer],
        dense: Mapping[str, Tensor],
        pruned: State,
        kept: Mapping[str, Tensor],
        done: Callable[[], None],
    ) -> None:
        """Refit neighbours: as they are met, or once all batches are seen."""
        at_once = len(self.batches) == 1

        def meet(sums: _Sums, generator: torch.Generator, values: Sequence[Values]) -> None:
            sums.add((values[0], values[1]), generator)
            if at_once:
                solve(sums)

        def solve(sums: _Sums) -> None:
            self._solve(sums, pruned, kept)
            done()

        sums = [_Sums(layer, len(self.batches)) for layer in layers]
        for number, batch in enumerate(self.batches):
            generator = torch.Generator().manual_seed(self.seed * 7919 + number)
            at = {s.layer.node: partial(meet, s, generator) for s in sums}
            self._replay.run([dense, pruned], [batch], at, until=layers[-1].node)
        if not at_once:
            for each in sums:
                solve(each)

    def _rounds(self) -> Iterator[list[Layer]]:
        count = 1 if len(self.batches) == 1 else min(self.rounds, len(self._layers))
        size = math.ceil(len(self._layers) / count)
        for begin in range(0, len(self._layers), size):
            yield self._layers[begin : begin + size]

    def _solve(self, sums: _Sums, pruned: State, kept: Mapping[str, Tensor]) -> None:
        layer = sums.layer
        weight = pruned[layer.weight]
        masked = weight.flatten(1).cpu().double()
        mask = kept.get(layer.weight)
        alive = torch.ones_like(masked, dtype=torch.bool) if mask is None else mask.flatten(1)
        fitted = sums.fitted(masked, alive.cpu(), self.ridges)
        weight.copy_(fitted.weight.view(weight.shape))
        if layer.bias is not None:
            pruned[layer.bias].copy_(fitted.constant)
        elif layer.mean is not None:
            pruned[layer.mean].sub_(fitted.constant.to(pruned[layer.mean]))


class _Sums:
    """Moments of one layer, over every second image and over the others."""

    def __init__(self, layer: Layer, batches: int) -> None:
        self.layer = layer
        columns = math.prod(shape_of(layer.node.args[1])[1:])
        groups = 1 if layer.geometry is None else layer.geometry.groups
        self.fit = Moments.empty(layer.filters, columns, groups)
        self.check = Moments.empty(layer.filters, columns, groups)
        self._places = places_for(columns) / batches
        self._every = math.ceil(places_for(columns) / places_held(columns, layer.filters))
        #: What the same two halves of the images hold for a ReLU; None where none follows.
        self.rectified: tuple[RectifiedPlaces, RectifiedPlaces] | None = None

    def add(self, values: tuple[Values, Values], generator: torch.Generator) -> None:
        """Add places of one batch."""
        layer = self.layer
        said, read = layer.wanted(values), values[1][cast("Node", layer.node.args[0])]
        relu = layer.before_relu(values)
        if relu is not None:
            before, slope = relu
            said = torch.cat([said, before], -1 if layer.geometry is None else 1)
            self.rectified = self.rectified or (RectifiedPlaces(slope), RectifiedPlaces(slope))
        for part, columns, wanted in read_samples(
            read, said, layer.geometry, self._places, generator, parts=2
        ):
            (self.fit, self.check)[part].add(columns, wanted[:, : layer.filters])
            if self.rectified is not None:
                few = wanted[:: self._every].split(layer.filters, 1)
                self.rectified[part].add(columns[:, :: self._every], *few)

    def fitted(self, masked: Tensor, alive: Tensor, ridges: Sequence[float]) -> Fitted:
        """Fit with every second image, choose by the others, and fit with all."""
        centred = self.layer.takes_constant
        whole = self.fit + self.check
        best, ridge = self.check.error(masked, centred=centred), None
        for candidate in ridges:
            flat = refit(masked, *self.fit.means(centred=centred), alive, candidate)
            error = self.check.error(flat, centred=centred)
            if error < best:
                best, ridge = error, candidate
        if ridge is None:
            return Fitted(masked, whole.constant(masked) * alive.any(1))
        found = self._linear(self.fit, masked, alive, ridge)
        everything = self._linear(whole, masked, alive, ridge)
        if self.rectified is None:
            return everything
        fit, check = self.rectified
        steps = partial(rectified_steps, masked=masked, kept=alive, centred=centred, ridge=ridge)
        tried = [found, *islice(steps(found, moments=self.fit, places=fit), _STEPS)]
        number = fewest_errors([check.error(t.weight, t.constant) for t in tried])
        again = steps(everything, moments=whole, places=fit + check)
        return [everything, *islice(again, number)][-1]

    def _linear(self, moments: Moments, masked: Tensor, alive: Tensor, ridge: float) -> Fitted:
        centred = self.layer.takes_constant
        flat = refit(masked, *moments.means(centred=centred), alive, ridge)
        constant = moments.constant(flat) * alive.any(1)
        return Fitted(flat, constant if centred else torch.zeros_like(constant))
