"""Second moments of what every layer of a network reads, from one pass over calibration images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.errors import DataError
from nni_gconv.graph import Graph, Replay, Values, shape_of, state_of, trace
from nni_gconv.modes import evaluating
from nni_gconv.pruning.calibration.images import Calibration
from nni_gconv.pruning.calibration.patches import (
    Geometry,
    is_matrix_layer,
    places_for,
    read_samples,
)

#: Bytes that the values of one forward may take at a time.
_MEMORY = 2**30


class _Sum:
    """Sums over places of one layer.

    About the mean of the first places: what hardly varies about a large mean would drown in the
    rounding of its squares.
    """

    def __init__(self, node: Node, batches: int) -> None:
        self._shift: Tensor | None = None
        self.node = node
        self.geometry = Geometry.of(node)
        columns = math.prod(shape_of(node.args[1])[1:])
        groups = 1 if self.geometry is None else self.geometry.groups
        self._places = places_for(columns) / batches
        self._square = torch.zeros(groups, columns, columns, dtype=torch.float64)
        self._sum = torch.zeros(groups, columns, dtype=torch.float64)
        self._count = 0

    def add(self, generator: torch.Generator, values: Sequence[Values]) -> None:
        """Add places of one batch."""
        read, said = values[0][self.node.args[0]], values[0][self.node]  # type: ignore[index]
        for _, columns, _ in read_samples(read, said, self.geometry, self._places, generator):
            if self._shift is None:
                self._shift = columns.mean(1, keepdim=True)
            columns = columns - self._shift  # noqa: PLW2901 - see the class
            self._square += (columns.mT @ columns).cpu().double()
            self._sum += columns.sum(1).cpu().double()
            self._count += columns.shape[1]

    def covariance(self) -> Tensor:
        """Covariance of the columns: (groups, columns, columns)."""
        mean = self._sum / self._count
        return self._square / self._count - mean[:, :, None] * mean[:, None, :]


def read_moments(model: nn.Module, calibration: Calibration, *, seed: int = 0) -> dict[str, Tensor]:
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
    dict of str to Tensor of float64, shape (groups, columns, columns)
        Covariance of the columns of each flattened weight, by the weight's dotted name, the first
        of its names. Transposed convolutions and
        weights that are computed in the forward are left out.

    Raises
    ------
    DataError
        A layer reads numbers that are not finite; the message names it.

    Examples
    --------
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> found = read_moments(nn.Linear(3, 2), Calibration(x))
    >>> torch.allclose(found["weight"][0].float(), x.T.cov(correction=0), atol=1e-5)
    True
    """
    state = state_of(model)
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
    found = {nodes[node]: total.covariance() for node, total in sums.items()}
    for name, covariance in found.items():
        if not bool(covariance.isfinite().all()):
            raise DataError(
                f"calibration: what {name} reads is not finite on these images; look at the model "
                "or at how the images are normalised"
            )
    return found


def layer_covariances(
    model: nn.Module, calibration: Any, names: Iterable[str], *, seed: int = 0
) -> dict[str, Tensor]:
    """Covariance of what convolutions of one group and linear layers read, by module.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model; left as it was found.
    calibration : Calibration, Tensor or iterable of batches
        Images of the training split.
    names : iterable of str
        Modules.
    seed : int
        Which places are looked at.

    Returns
    -------
    dict of str to Tensor of float64, shape (C * taps, C * taps)
        Columns as in the flattened weight. Layers that cannot be seen are left out.

    Raises
    ------
    DataError
        The images cannot be used, or a layer reads numbers that are not finite.

    Examples
    --------
    >>> from nni_gconv.groupconv.search import search_groups
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> images = torch.randn(32, 4, 8, 8)
    >>> seen = layer_covariances(net, images, ["0", "2"])
    >>> convs = [{"op_types": ["Conv2d"]}]
    >>> found = search_groups(
    ...     net, images[:1], convs, {"macs": 0.6}, score="error", covariances=seen
    ... )
    >>> found.macs <= 0.6 * found.dense.macs
    True
    """
    moments = read_moments(model, Calibration.of(calibration), seed=seed)
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(p): name for name, p in model.named_parameters()}
    keys = {name: first.get(id(modules[name].weight)) for name in names}
    return {
        name: moments[key][0]
        for name, key in keys.items()
        if key in moments and len(moments[key]) == 1
    }


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
