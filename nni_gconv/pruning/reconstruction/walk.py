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

import torch
from torch import Tensor

from nni_gconv.graph import Graph, Replay, Values
from nni_gconv.pruning.calibration import weight_matrix, weight_of
from nni_gconv.pruning.reconstruction.layer_sums import LayerSums
from nni_gconv.pruning.reconstruction.layers import Layer, find_layers
from nni_gconv.training import counting

#: Tensors of one network by dotted name.
State = dict[str, Tensor]

#: Strengths that each layer chooses from.
RIDGES = (1e-3, 1e-2, 1e-1)


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

        def meet(sums: LayerSums, generator: torch.Generator, values: Sequence[Values]) -> None:
            sums.add((values[0], values[1]), generator)
            if at_once:
                solve(sums)

        def solve(sums: LayerSums) -> None:
            self._solve(sums, pruned)
            done()

        sums = [self._sums(layer, pruned, kept) for layer in layers]
        for number, batch in enumerate(self.batches):
            generator = torch.Generator().manual_seed(self.seed * 7919 + number)
            at = {s.layer.node: partial(meet, s, generator) for s in sums}
            self._replay.run([dense, pruned], [batch], at, until=layers[-1].node)
        if not at_once:
            for each in sums:
                solve(each)

    def _sums(self, layer: Layer, pruned: State, kept: Mapping[str, Tensor]) -> LayerSums:
        weight = weight_matrix(pruned[layer.weight], layer.geometry).cpu().double()
        mask = kept.get(layer.weight)
        alive = None if mask is None else weight_matrix(mask, layer.geometry).cpu()
        whole = torch.ones_like(weight, dtype=torch.bool)
        return LayerSums(layer, weight, whole if alive is None else alive, len(self.batches))

    def _rounds(self) -> Iterator[list[Layer]]:
        count = 1 if len(self.batches) == 1 else min(self.rounds, len(self._layers))
        size = math.ceil(len(self._layers) / count)
        for begin in range(0, len(self._layers), size):
            yield self._layers[begin : begin + size]

    def _solve(self, sums: LayerSums, pruned: State) -> None:
        layer, fitted = sums.layer, sums.fitted(self.ridges)
        weight = pruned[layer.weight]
        weight.copy_(weight_of(fitted.weight, weight, layer.geometry))
        if layer.bias is not None:
            pruned[layer.bias].copy_(fitted.constant)
        elif layer.mean is not None:
            pruned[layer.mean].sub_(fitted.constant.to(pruned[layer.mean]))
