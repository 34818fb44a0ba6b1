"""What is known of a model's channels: which live and die together, and where they stand.

Made by :mod:`nni_gconv.graph.channels`; read by all that removes or counts channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.sizes import Sum

Field = Tensor
#: Fields of one value; a list of such for operators that return several values.
Fields = tuple[Field, ...]


@dataclass(frozen=True)
class Axis:
    """Labels of one axis of one parameter or buffer.

    ``role`` says what the axis does: ``row`` (makes channels), ``column`` (reads channels),
    ``bias`` and ``scale`` (act on each channel), ``stat`` (buffers such as a running mean).
    """

    tensor: str
    dim: int
    role: str
    labels: Tensor


@dataclass(frozen=True)
class Read:
    """A layer whose `weight` reads channels; `labels[i]` is the channel input position i holds.

    A weight that is `computed` may connect what its parameter's mask does not.
    """

    node: Node
    weight: str
    labels: Tensor
    groups: int
    transposed: bool
    computed: bool = False

    @property
    def key(self) -> Node:
        """Under which constants tell what is given to it."""
        return self.node


@dataclass(frozen=True)
class Mix:
    """An operator that mixes channels, in which those that are zero count for nothing.

    ``place`` tells the dimensions apart of an operator that mixes along several.
    """

    node: Node
    labels: Tensor
    place: Any = 0

    @property
    def key(self) -> tuple[Node, Any]:
        """Under which constants tell what is given to it."""
        return self.node, self.place


@dataclass(frozen=True)
class Balance:
    """Every part must keep the same number of `labels`; `parts[i]` is the part of label i."""

    labels: Tensor
    parts: Tensor
    where: str


@dataclass(frozen=True)
class PadEdit:
    """A padding module on the channel axis: its widths follow what is kept of these labels."""

    module: str
    entry: int
    front: Tensor
    back: Tensor


@dataclass(frozen=True)
class NormWidth:
    """A norm whose width attributes follow what is kept of these labels, weights or not."""

    module: str
    labels: Tensor


@dataclass(frozen=True)
class NormOver:
    """A norm over the channels `labels`, along one dimension of its input."""

    module: str
    labels: Tensor
    channel: int


@dataclass(frozen=True)
class MeanOver:
    """A mean over the channels `labels` in `column` of a weight, which can keep its divisor."""

    weight: str
    column: int
    labels: Tensor


@dataclass(frozen=True)
class Pick:
    """An integer buffer that picks channels: those labelled `picked` out of `source`."""

    tensor: str
    source: Tensor
    picked: Tensor


@dataclass(frozen=True)
class SizeUse:
    """A place where a forward asks for a size by attributes: as many as are kept of `labels`."""

    node: Node
    total: Sum
    labels: Tensor


@dataclass(frozen=True)
class ChannelMap:
    """Result of the pass over one graph.

    Attributes
    ----------
    classes : ndarray of int64, shape (labels,)
        Class of each label; equal class means removed together.
    pinned : dict of int to str
        Class -> why it must keep its width.
    axes : dict of (str, int) to Axis
        Labelled axes of parameters and buffers.
    reads : tuple of Read
        Every place where a layer reads channels.
    mixes : tuple of Mix
        Every place where channels are mixed without weights: only zeros can go there.
    balances : tuple of Balance
        Groups that must stay equally wide.
    pads : tuple of PadEdit
        Padding modules that have to follow.
    norms : tuple of NormWidth
        Norms whose attributes, besides their tensors, say how many channels there are.
    norms_over : tuple of NormOver
        Norms over channels, which have to count those that go.
    means_over : tuple of MeanOver
        Means over channels, whose readers have to count those that go.
    picks : tuple of Pick
        Buffers that hold positions of channels.
    sizes : tuple of SizeUse
        Attributes of modules that say how many channels there are, none of them twice.
    computed : dict of str to str
        Layers that run with other weights than their own -> how that comes.
    halvings : tuple of Node
        Operators that cut channels into equal parts (a chunk, a view that makes one dimension
        two), whose sizes the small model has to confirm.
    values : dict of Node to tuple of Tensor
        Fields of each value, for whoever wants to look a channel up.
    """

    classes: np.ndarray
    pinned: dict[int, str]
    axes: dict[tuple[str, int], Axis]
    reads: tuple[Read, ...]
    mixes: tuple[Mix, ...]
    balances: tuple[Balance, ...]
    pads: tuple[PadEdit, ...]
    norms: tuple[NormWidth, ...]
    norms_over: tuple[NormOver, ...]
    means_over: tuple[MeanOver, ...]
    picks: tuple[Pick, ...]
    sizes: tuple[SizeUse, ...]
    computed: dict[str, str]
    halvings: tuple[Node, ...]
    values: dict[Node, Any]

    @property
    def count(self) -> int:
        """Number of classes."""
        return int(self.classes.max(initial=-1)) + 1

    def of(self, labels: Tensor) -> np.ndarray:
        """Return the class of each label, in the shape of `labels`."""
        return self.classes[labels.numpy()]


def varying(field: Field) -> list[int]:
    """Return the dimensions along which a field's labels run."""
    return [d for d in range(field.dim()) if field.shape[d] > 1]


def place(labels: Tensor, rank: int, dim: int) -> Field:
    """View a label vector so that it runs along `dim` of a tensor of `rank` dimensions."""
    view = [1] * rank
    view[dim] = -1
    return labels.view(view)


def compress(field: Tensor) -> Field:
    """Drop dimensions along which nothing changes to size 1."""
    for dim in range(field.dim()):
        if field.shape[dim] == 1:
            continue
        head = field.narrow(dim, 0, 1)
        if field.stride(dim) == 0 or bool((field == head).all()):
            field = head
    return field
