"""One walk through dense and pruned network side by side: each layer is refitted when it is met.

He, Zhang and Sun (2017) fit each pruned layer to the dense one on the dense network's inputs. Here
the inputs are the pruned network's own as it is by then, and the targets the dense network's, so
that a layer also makes up for what those before it have lost; where it ends in a sum, for what the
other summand lacks as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nni_gconv.display import counting
from nni_gconv.graph import Graph, Replay, Values
from nni_gconv.pruning.calibration import weight_matrix, weight_of
from nni_gconv.pruning.reconstruction.layer_sums import LayerSums
from nni_gconv.pruning.reconstruction.layers import Layer, find_layers
from nni_gconv.pruning.reconstruction.settings import PLACES

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
        Calibration images.
    ridges : sequence of float
        See :func:`~nni_gconv.pruning.reconstruction.least_squares.refit`. Which of them serves
        each layer best is seen on every second image; where none does, the layer stays as it is.
    memory : int
        Bytes that values of both networks may take where they wait between layers. A layer for
        which those of all batches fit is refitted as it is met, and the runs go on from there;
        neighbours that lie between such layers are refitted together, and run again afterwards.
    rounds : int
        In so many parts of all layers at least those are refitted that do not fit.
    seed : int
    places : int
        See :class:`~nni_gconv.pruning.ReconstructSettings`.
    quick : bool
        A look at what comes of it: by an eighth of the places, ReLUs left out of account.
    progress : bool
        Whether a bar counts the layers on a terminal.
    """

    graph: Graph
    batches: Sequence[Tensor]
    ridges: Sequence[float] = RIDGES
    memory: int = 2**31
    rounds: int = 8
    seed: int = 0
    places: int = PLACES
    quick: bool = False
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
        runs = [self._replay.start([dense, pruned], [batch]) for batch in self.batches]
        generators = [torch.Generator().manual_seed(self.seed * 7919 + n) for n in range(len(runs))]
        with counting("layers refitted", len(self._layers), enabled=self.progress) as done:
            for layers, fit in self._rounds():
                sums = [self._sums(layer, pruned, kept) for layer in layers]
                for run, generator in zip(runs, generators, strict=True):
                    at = {s.layer.node: partial(_meet, s, generator) for s in sums}
                    (run if fit else run.copy()).go(at, until=layers[-1].node)
                for each in sums:
                    self._solve(each, pruned)
                    done()
        return pruned

    def _sums(self, layer: Layer, pruned: State, kept: Mapping[str, Tensor]) -> LayerSums:
        weight = weight_matrix(pruned[layer.weight], layer.geometry).cpu().double()
        mask = kept.get(layer.weight)
        alive = None if mask is None else weight_matrix(mask, layer.geometry).cpu()
        whole = torch.ones_like(weight, dtype=torch.bool)
        return LayerSums(
            layer,
            weight,
            whole if alive is None else alive,
            len(self.batches),
            each=self.places,
            quick=self.quick,
        )

    def _rounds(self) -> Iterator[tuple[list[Layer], bool]]:
        """Part the layers in neighbours, and say whether values can wait there: one each then."""
        elements = self._replay.elements()
        together = 2 * 4 * len(self.batches)
        size = math.ceil(len(self._layers) / self.rounds)
        waiting: list[Layer] = []
        for layer in self._layers:
            fits = len(self.batches) == 1 or together * elements[layer.node] <= self.memory
            if waiting and (fits or len(waiting) == size):
                yield waiting, False
                waiting = []
            if fits:
                yield [layer], True
            else:
                waiting.append(layer)
        if waiting:
            yield waiting, False

    def _solve(self, sums: LayerSums, pruned: State) -> None:
        layer, fitted = sums.layer, sums.fitted(self.ridges)
        weight = pruned[layer.weight]
        weight.copy_(weight_of(fitted.weight, weight, layer.geometry))
        if layer.bias is not None:
            pruned[layer.bias].copy_(fitted.constant)
        elif layer.mean is not None:
            pruned[layer.mean].sub_(fitted.constant.to(pruned[layer.mean]))


def _meet(sums: LayerSums, generator: torch.Generator, values: Sequence[Values]) -> None:
    sums.add((values[0], values[1]), generator)
