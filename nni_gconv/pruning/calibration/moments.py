"""Second moments of what every layer of a network reads, from one pass over calibration images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph import Graph, Replay, Values, op_name, shape_of, trace
from nni_gconv.modes import evaluating
from nni_gconv.pruning.calibration.images import Calibration
from nni_gconv.pruning.calibration.patches import (
    Geometry,
    is_matrix_layer,
    read_at,
    said_at,
    sample_places,
)

#: Places that are multiplied at a time.
CHUNK = 4096
#: Bytes that the values of one forward may take at a time.
_MEMORY = 2**30


def places_for(columns: int) -> int:
    """Choose how many places a layer is looked at: more where they are cheap.

    Examples
    --------
    >>> [places_for(n) for n in (9, 576, 4608)]
    [65536, 65536, 27648]
    """
    return max(6 * columns, min(65536, int(1.5e11) // columns**2))


@dataclass
class ReadMoments:
    """What one layer reads.

    Attributes
    ----------
    covariance : Tensor of float64, shape (groups, columns, columns)
        Of the columns of its flattened weight, about their means.
    """

    covariance: Tensor


class _Sum:
    """Sums over places of one layer."""

    def __init__(self, node: Node, batches: int) -> None:
        self.node = node
        self.geometry = None if op_name(node) == "linear" else Geometry.of(node)
        columns = math.prod(shape_of(node.args[1])[1:])
        groups = 1 if self.geometry is None else self.geometry.groups
        self._places = places_for(columns) / batches
        self._square = torch.zeros(groups, columns, columns, dtype=torch.float64)
        self._sum = torch.zeros(groups, columns, dtype=torch.float64)
        self._count = 0

    def add(self, generator: torch.Generator, values: Sequence[Values]) -> None:
        """Add places of one batch."""
        read, said = values[0][self.node.args[0]], values[0][self.node]  # type: ignore[index]
        if self.geometry is None:
            read, said = read.movedim(-1, 1), said.movedim(-1, 1)
        shape = (said.shape[0], *said.shape[2:])
        most = math.ceil(self._places / shape[0])
        for some in sample_places(shape, most, generator).split(CHUNK):
            columns = (
                said_at(read, some)[None]
                if self.geometry is None
                else read_at(read, self.geometry, some)
            )
            self._square += (columns.mT @ columns).cpu().double()
            self._sum += columns.sum(1).cpu().double()
            self._count += columns.shape[1]

    def moments(self) -> ReadMoments:
        mean = self._sum / self._count
        return ReadMoments(self._square / self._count - mean[:, :, None] * mean[:, None, :])


def read_moments(
    model: nn.Module, calibration: Calibration, *, seed: int = 0
) -> dict[str, ReadMoments]:
    """Gather the moments of all convolutions and linear layers in one pass.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model; left as it was found.
    calibration : Calibration
    seed : int
        Which places are looked at.

    Returns
    -------
    dict of str to ReadMoments
        By the dotted name of the weight, the first of its names. Transposed convolutions and
        weights that are computed in the forward are left out.

    Examples
    --------
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> found = read_moments(nn.Linear(3, 2), Calibration(x))
    >>> torch.allclose(found["weight"].covariance[0].float(), x.T.cov(correction=0), atol=1e-5)
    True
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: tensor.detach() for name, tensor in tensors.items()}
    device = next(iter(state.values())).device
    with evaluating(model):
        one = trace(model, calibration.inputs[:1].to(device))
        each = min(calibration.batch_size, max(1, _MEMORY // (4 * Replay(one).most_elements())))
        count = -(-len(calibration) // each)
        size = len(calibration) // count
        graph = trace(model, calibration.inputs[:size].to(device))
    replay, nodes = Replay(graph), _layers(graph)
    sums = {node: _Sum(node, count) for node in nodes}
    for number in range(count):
        batch = calibration.inputs[number * size : (number + 1) * size].to(device)
        generator = torch.Generator().manual_seed(seed * 7919 + number)
        at = {node: partial(total.add, generator) for node, total in sums.items()}
        replay.run([state], [batch], at)
    return {nodes[node]: total.moments() for node, total in sums.items()}


def _layers(graph: Graph) -> dict[Node, str]:
    found: dict[Node, str] = {}
    for node in graph.nodes:
        if node.op == "call_function" and is_matrix_layer(node):
            weight = node.args[1]
            if isinstance(weight, Node) and weight.name in graph.tensors:
                name = graph.tensors[weight.name]
                if name not in found.values():  # of a shared layer, its first call
                    found[node] = name
    return found
