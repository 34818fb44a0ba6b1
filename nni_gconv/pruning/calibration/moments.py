"""Second moments of what every layer of a network reads, from one pass over calibration images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.compat import type_remedy
from nni_gconv.display import counting
from nni_gconv.errors import DataError, TraceError
from nni_gconv.graph import Graph, Replay, Values, state_of, trace
from nni_gconv.groupconv import groups_of
from nni_gconv.modes import evaluating
from nni_gconv.pruning.calibration.gram import gram
from nni_gconv.pruning.calibration.images import Calibration
from nni_gconv.pruning.calibration.kept import content_key, gathered_once
from nni_gconv.pruning.calibration.patches import (
    AT_A_TIME,
    Geometry,
    is_matrix_layer,
    joined,
    matrix_shape,
    places_for,
    read_samples,
)
from nni_gconv.training import process_number, summed

_logger = logging.getLogger(__name__)

#: Columns of a layer that are looked at together; wider ones are parted in blocks.
MOST_COLUMNS = 8192
#: Columns from which places of several batches are summed up together.
_WIDE = 1024
#: Bytes that the values of one forward may take at a time.
_MEMORY = 2**30


def places_seen(columns: int) -> int:
    """Choose how many places of a layer are summed up: a choice needs fewer than a refit.

    Examples
    --------
    >>> [places_seen(n) for n in (9, 576, 1024, 4608)]
    [65536, 65536, 20980, 18432]
    """
    return places_for(columns, each=4, products=2.2e10)


class _Sum:
    """Sums over places of one layer, of every chunk about its own mean.

    What hardly varies about a large mean would drown in the rounding of its squares; and sums about
    means add up over processes, whoever has seen what.
    """

    def __init__(self, node: Node, batches: int) -> None:
        self.node = node
        self.geometry = Geometry.of(node)
        columns = matrix_shape(node)[1]
        blocks = blocks_of(columns) or 1
        self._blocks, width = blocks, columns // blocks
        self._groups = 1 if self.geometry is None else self.geometry.groups
        self._places = places_seen(width) / batches
        self._square = torch.zeros(self._groups * blocks, width, width, dtype=torch.float64)
        self._means: list[Tensor] = []
        self._counts: list[int] = []
        self._waiting: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """Memory of the sums."""
        return 8 * self._square.numel()

    def add(self, generator: torch.Generator, values: Sequence[Values]) -> None:
        """Add places of one batch."""
        read, said = values[0][self.node.args[0]], values[0][self.node].shape  # type: ignore[index]
        for _, found, _ in read_samples(read, said, self.geometry, self._places, generator):
            self._waiting.append(found)
            rows = sum(places.shape[1] for places in self._waiting)
            if rows >= AT_A_TIME or self._square.shape[-1] < _WIDE:
                self._settle()

    def _settle(self) -> None:
        """Sum up what waits: a sum of wide columns is large itself, and is added to seldom."""
        if not self._waiting:
            return
        found, self._waiting = joined(self._waiting, 1), []
        count = found.shape[1]
        columns = found.view(self._groups, count, self._blocks, -1).movedim(2, 1).flatten(0, 1)
        mean = columns.mean(1, keepdim=True)
        columns.sub_(mean)  # what was gathered is nobody else's
        self._square += gram(columns).cpu()
        self._means.append((mean + columns.mean(1, keepdim=True))[:, 0].cpu().double())
        self._counts.append(count)

    def covariance(self) -> Tensor:
        """Covariance of the columns, over all processes: (groups * blocks, width, width)."""
        self._settle()
        counts = torch.tensor(self._counts, dtype=torch.float64)[:, None, None]
        none = self._square[None, :, 0][:0]  # a process may have seen nothing
        means = torch.cat([none, *[mean[None] for mean in self._means]])
        count = summed(counts.sum())
        mean = summed((counts * means).sum(0)) / count
        apart = ((means - mean) * counts.sqrt()).movedim(0, 1)
        return summed(self._square.add_(gram(apart))).div_(count)


def blocks_of(columns: int) -> int | None:
    """Say in how many equal blocks the columns of a layer are looked at: 1 but for wide ones.

    Returns
    -------
    int or None
        None where no number of blocks fits.

    Examples
    --------
    >>> [blocks_of(n) for n in (4608, 9216, 25088, 10007)]
    [1, 2, 4, None]
    """
    fits = (n for n in range(1, 65) if columns % n == 0 and columns // n <= MOST_COLUMNS)
    return next(fits, None)


def read_moments(model: nn.Module, calibration: Calibration, *, seed: int = 0) -> dict[str, Tensor]:
    """Gather the moments of all convolutions and linear layers in one pass.

    Processes that train together each take some of the batches, and all get the sums. With
    ``keep_in`` the result is kept in a file, see :mod:`nni_gconv.pruning.calibration.kept`.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model; left as it was found.
    calibration : Calibration
        The same images in every process.
    seed : int
        Which places are looked at.

    Returns
    -------
    dict of str to Tensor of float64, shape (groups, columns, columns)
        Covariance of the columns of each flattened weight, by the weight's dotted name, the first
        of its names. Layers of more than 8,192 columns are parted in equal blocks of columns, each
        of which stands like a group, without what is between them; where no blocks fit a layer is
        left out, as are weights that are computed in the forward. Columns are in the order of
        :func:`nni_gconv.pruning.calibration.patches.weight_matrix`.

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
    job = _Pass.of(model, calibration, seed)
    key = job.key() if calibration.keep_in else ""
    found = gathered_once(calibration.keep_in, key, job.gather)
    for name, covariance in found.items():
        if not bool(covariance.sum().isfinite()):  # of float64: finite where each number is
            raise DataError(
                f"calibration: what {name} reads is not finite on these images; look at the model "
                "or at how the images are normalised"
            )
    return found


@dataclass(frozen=True)
class _Pass:
    """A pass over calibration images, in equal batches that the graph was traced with."""

    graph: Graph
    state: Mapping[str, Tensor]
    calibration: Calibration
    size: int
    seed: int

    @classmethod
    def of(cls, model: nn.Module, calibration: Calibration, seed: int) -> _Pass:
        """Choose batches whose values fit in memory."""
        state, calibration = state_of(model), calibration.typed_for(model)
        device = next(iter(state.values())).device
        with evaluating(model):
            one = trace_images(model, calibration.inputs[:1].to(device))
            most = max(1, _MEMORY // (4 * Replay(one).most_elements()))
            count = -(-len(calibration) // min(calibration.batch_size, most))
            size = len(calibration) // count
            graph = trace(model, calibration.inputs[:size].to(device))
        return cls(graph, state, calibration, size, seed)

    def key(self) -> str:
        """Digest of all that the sums depend on."""
        operators = [f"{n} {n.target} {n.args} {n.kwargs}" for n in self.graph.nodes]
        tensors = {f"constant {n}": t for n, t in self.graph.constants.items()}
        device = next(iter(self.state.values())).device
        words = [*operators, str(self.graph.tensors), f"{self.size} {self.seed} {device.type}"]
        return content_key(
            words, {**self.state, **tensors, "calibration images": self.calibration.inputs}
        )

    def gather(self) -> dict[str, Tensor]:
        """Run the batches that are this process's, and add up over all processes."""
        replay, images = Replay(self.graph), self.calibration.inputs
        count, nodes = len(images) // self.size, _layers(self.graph)
        sums = {node: _Sum(node, count) for node in nodes}
        self._say(nodes, sums, 4 * replay.most_elements())
        device = next(iter(self.state.values())).device
        rank, processes = process_number()
        mine = range(rank, count, processes)
        with counting("calibration batches", len(mine), enabled=self.calibration.progress) as done:
            for number in mine:
                batch = images[number * self.size : (number + 1) * self.size].to(device)
                generator = torch.Generator().manual_seed(self.seed * 7919 + number)
                at = {node: partial(total.add, generator) for node, total in sums.items()}
                replay.run([self.state], [batch], at)
                done()
        return {nodes[node]: total.covariance() for node, total in sums.items()}

    def _say(self, nodes: Mapping[Node, str], sums: Mapping[Node, _Sum], values: int) -> None:
        """Say before how much memory this takes."""
        most = max(sums, key=lambda node: sums[node].bytes, default=None)
        if most is not None:
            _logger.info(
                "calibration: %d images in batches of %d; sums of %d layers take %.2f GiB (%s the "
                "most, %.2f), values of the network at most %.2f",
                len(self.calibration), self.size, len(sums),
                sum(s.bytes for s in sums.values()) / 2**30,
                nodes[most], sums[most].bytes / 2**30, values / 2**30,
            )  # fmt: skip


def layer_covariances(
    model: nn.Module, calibration: Any, names: Iterable[str], *, seed: int = 0
) -> dict[str, Tensor]:
    """Covariance of what convolutions and linear layers read, by module.

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
        Columns as in the flattened weight; of a convolution of several groups one for each, of
        shape (groups, C / groups * taps, C / groups * taps). Layers that cannot be seen are left
        out.

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
    found = {}
    for name, key in keys.items():
        groups = groups_of(modules[name])
        # Columns of a wide layer stand in blocks, without what is between them.
        if key in moments and len(moments[key]) == groups and not _transposed(modules[name]):
            found[name] = moments[key][0] if groups == 1 else moments[key]
    return found


def _transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "transposed", False))


def _layers(graph: Graph) -> dict[Node, str]:
    found: dict[Node, str] = {}
    for node in graph.nodes:
        if node.op == "call_function" and is_matrix_layer(node):
            weight = node.args[1]
            if isinstance(weight, Node) and weight.name in graph.tensors:
                name = graph.tensors[weight.name]
                if blocks_of(matrix_shape(node)[1]) is None:
                    _logger.warning("calibration: %s has too many columns: left out", name)
                elif name not in found.values():  # of a shared layer, its first call
                    found[node] = name
    return found


def trace_images(model: nn.Module, images: Tensor) -> Graph:
    """Trace a model on images; where it does not run on them at all, say that and no more."""
    try:
        graph = trace(model, images)
        if not type_remedy(model, images):
            return graph
    except TraceError:
        _try(model, images)
        raise
    _try(model, images)  # tensors without numbers were taken that others may not be
    return graph


def _try(model: nn.Module, images: Tensor) -> None:
    with running(model, images), torch.no_grad(), evaluating(model):
        model(images)


@contextmanager
def running(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Say in one line where a model does not run on calibration images."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            "calibration: the model does not run on images of shape "
            f"{tuple(images.shape[1:])}: {first}" + type_remedy(model, images, "images are")
        ) from error
