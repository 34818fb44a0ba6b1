"""Sides of layers: which of their channels are alive, and which layers split them alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.graph import Coupling, Segments, Wiring, decide, read_masks
from nni_gconv.groupconv import groups_of
from nni_gconv.groupconv.partition import Partition

Ints = NDArray[np.int64]
Side = tuple[Hashable, ...]
Sharing = Literal["none", "streams", "blocks"]

#: Layers in a row that split their channels alike, at most: those of a bottleneck.
_ROW = 3


@dataclass(frozen=True, eq=False)
class LiveLayer:
    """What is alive of a convolution.

    Attributes
    ----------
    shape : tuple of int
        F and C of the dense layer.
    rows, columns : ndarray of int64
        Filters and input channels that masks given leave.
    had : int
        Groups that the layer has already; `shape` counts the channels of all of them.
    row_segment, column_segment : int or None
        The segment of channels (:class:`nni_gconv.graph.segments.Segments`) that a side is the
        whole of, if it is one.
    """

    shape: tuple[int, int]
    rows: Ints
    columns: Ints
    row_segment: int | None
    column_segment: int | None
    had: int = 1

    @property
    def alive(self) -> tuple[int, int]:
        """Numbers of filters and of input channels that are alive."""
        return len(self.rows), len(self.columns)

    def mask(self, part: Partition) -> Tensor:
        """Mask of a partition of what is alive, shape (F, C): 1 inside the groups."""
        mask = np.zeros(self.shape, np.float32)
        mask[np.ix_(self.rows, self.columns)] = part.mask()
        return torch.from_numpy(self.folded(mask))

    def parts(self) -> list[list[Ints]]:
        """What is alive of the filters and of the input channels of each group, from its first.

        As much of each: groups stay equally wide.
        """
        found = []
        for side, size in zip((self.rows, self.columns), self.shape, strict=True):
            width = size // self.had
            found.append([side[side // width == n] - n * width for n in range(self.had)])
        return found

    def left(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Take from an array (F, C / had, ...), as the weight is, what is alive, in that form."""
        blocks = np.split(matrix, self.had)
        parts = zip(blocks, *self.parts(), strict=True)
        return np.concatenate([block[np.ix_(rows, columns)] for block, rows, columns in parts])

    def folded(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Turn a matrix (F, C) into one as the weight holds it, (F, C / had)."""
        width = self.shape[1] // self.had
        blocks = np.split(matrix, self.had)
        return np.concatenate(
            [block[:, n * width : (n + 1) * width] for n, block in enumerate(blocks)]
        )

    def unfolded(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Put what the weight holds of each group on the diagonal, zeros beside it."""
        rows, width = self.shape[0] // self.had, self.shape[1] // self.had
        whole = np.zeros(self.shape, matrix.dtype)
        for n in range(self.had):
            own = slice(n * rows, (n + 1) * rows), slice(n * width, (n + 1) * width)
            whole[own] = matrix[own[0]]
        return whole


class LiveLayers:
    """Convolutions of a traced model, and where their channels meet.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped.
    coupling : Coupling
        Of the same model.
    names : sequence of str
        The convolutions.
    masks : mapping
        NNI's masks that hold already; may be empty.

    Attributes
    ----------
    layers : dict of str to LiveLayer
        In the order in which they run.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> coupling = Coupling.trace(net, torch.zeros(1, 4, 8, 8))
    >>> live = LiveLayers(net, coupling, ["0", "2"], {})
    >>> live.shared({"0": 2, "2": 2}, "blocks")["2"][1] == live.shared({"0": 2}, "blocks")["0"][0]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        names: Sequence[str],
        masks: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        graph, self._channels = coupling.graph, coupling.channels
        kept = read_masks(model, masks, graph.aliases)
        self._removed = decide(graph, self._channels, kept, Wiring(graph, kept)).removed
        self._segments = Segments(self._channels, self._removed)
        self._writers = self._count_writers()
        running = dict.fromkeys(graph.owner(node) for node in graph.nodes)
        weights = {name: graph.aliases[f"{name}.weight".lstrip(".")][0] for name in names}
        ordered = sorted(weights, key=list(running).index) if set(names) <= set(running) else names
        self.layers = {
            name: self._layer(
                weights[name],
                tuple(graph.lookup(weights[name]).shape[:2]),
                groups_of(model.get_submodule(name)),
            )
            for name in ordered
        }

    def _layer(self, weight: str, shape: tuple[int, ...], had: int) -> LiveLayer:
        reading = [r for r in self._channels.reads if r.weight == weight and r.groups > 1]
        shape = (shape[0], shape[1] * had)
        sides: list[tuple[Ints, int | None]] = []
        for dim in (0, 1):
            axis = self._channels.axes.get((weight, dim))
            labels = reading[0].labels if reading and dim == 1 else getattr(axis, "labels", None)
            if labels is None:
                sides.append((np.arange(shape[dim]), None))
                continue
            classes = self._channels.of(labels)
            stays = np.flatnonzero(~self._removed[classes])
            of = np.unique(self._segments.of[classes[stays]])
            alone = len(of) == 1 and len(self._segments.members[of[0]]) == len(stays)
            sides.append((stays, int(of[0]) if alone else None))
        (rows, row_segment), (columns, column_segment) = sides
        return LiveLayer(shape, rows, columns, row_segment, column_segment, had)

    def _count_writers(self) -> Counter[int]:
        """Number of layers that make the channels of each segment; depthwise ones only pass on."""
        reading = {read.weight for read in self._channels.reads}
        reading |= {a.tensor for a in self._channels.axes.values() if a.role == "column"}
        count: Counter[int] = Counter()
        for axis in self._channels.axes.values():
            if axis.role == "row" and axis.tensor in reading:
                of = self._segments.of[self._channels.of(axis.labels)]
                count.update(np.unique(of[of >= 0]).tolist())
        return count

    def shared(self, groups: Mapping[str, int], sharing: Sharing) -> dict[str, tuple[Side, Side]]:
        """Name the two sides of each layer; sides of one name are to be split alike.

        Parameters
        ----------
        groups : mapping of str to int
            Layers that are grouped -> G; only layers of equal G share.
        sharing : {"none", "streams", "blocks"}
            See :class:`nni_gconv.pruning.methods.gconv.pruner.GroupConvPruner`.

        Returns
        -------
        dict of str to (tuple, tuple)
            Layer -> names of the side of its filters and of its input channels.
        """
        sides: dict[str, tuple[Side, Side]] = {}
        row: dict[str, int] = {}
        written: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in [name for name in self.layers if name in groups]:
            layer, count = self.layers[name], groups[name]
            out: Side = (name, "out")
            into: Side = (name, "in")
            row[name] = 1
            if layer.had > 1:  # its groups cannot be exchanged
                sides[name] = (out, into)
                continue
            if sharing != "none" and layer.row_segment is not None:
                out = ("channels", layer.row_segment, count)
                written[layer.row_segment, count].append(name)
            if sharing == "blocks" and layer.column_segment is not None:
                before = written[layer.column_segment, count]
                if self._reads_alike(layer, groups, [row[n] for n in before]):
                    into = ("channels", layer.column_segment, count)
                    row[name] += max([row[n] for n in before], default=0)
            sides[name] = (out, into if into != out else (name, "in"))
        return sides

    def _reads_alike(
        self, layer: LiveLayer, groups: Mapping[str, int], rows: Sequence[int]
    ) -> bool:
        """Tell whether a layer splits what it reads as the layers that write it do.

        `rows` are the layers in a row that end in each of these, of those with as many groups.
        Where nothing but gathers mixes groups, some have to stay: a block reads its stream by one.
        """
        column = layer.column_segment
        if not any(self.layers[name].row_segment == column for name in groups):
            return True  # nobody has chosen yet: its readers agree among themselves
        if not rows or column is None:
            return False
        if self._writers[column] == 1:
            return rows[0] < _ROW
        # A projection shortcut leads from stream to stream.
        return layer.row_segment is not None and self._writers[layer.row_segment] > 1


def check_whole(before: LiveLayers, left: LiveLayers) -> None:
    """Refuse masks that silence channels of the layers to be split."""
    for name, layer in before.layers.items():
        if layer.alive != left.layers[name].alive:
            raise ConfigError(
                f"from_compressor: the earlier pruner silences channels of {name}; cut them "
                "with ModelSpeedup and begin anew with the small model"
            )
