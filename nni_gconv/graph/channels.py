"""Channel algebra: which positions of which tensors live and die together.

Every position of every parameter axis gets a *label*. A value in the graph carries *fields*: label
arrays that broadcast against it, each varying along the axis the labels run over. Operators that
only move data are run on the label arrays themselves, so a flatten, a transpose or a concatenation
needs no rule of its own. Operators that tie two axes (a convolution and its input, a sum of two
branches) add edges between labels; the connected components of those edges are the *classes*:
what can only be removed together.

The pass knows nothing of masks and of methods. What it cannot follow it pins: a pinned class keeps
its width, with the reason and the line of the user's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.fx import Node

from nni_gconv import compat
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.trace import Graph, location

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
    """A layer whose `weight` reads channels; `labels[i]` is the channel input position i holds."""

    node: Node
    weight: str
    labels: Tensor
    groups: int
    transposed: bool

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
class Pick:
    """An integer buffer that picks channels: those labelled `picked` out of `source`."""

    tensor: str
    source: Tensor
    picked: Tensor


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
    picks : tuple of Pick
        Buffers that hold positions of channels.
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
    picks: tuple[Pick, ...]
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


class Walker:
    """Collects labels, edges and pins while the rules visit the operators in order."""

    def __init__(self, graph: Graph, *, sizes_agree: bool = False) -> None:
        self.graph = graph
        self.sizes_agree = sizes_agree
        self.count = 0
        self.edges: list[tuple[Tensor, Tensor]] = []
        self.pins: list[tuple[Tensor, str]] = []
        self.agreements: list[tuple[Tensor, Tensor, str]] = []
        self.axes: dict[tuple[str, int], Axis] = {}
        self.reads: list[Read] = []
        self.mixes: list[Mix] = []
        self.balances: list[Balance] = []
        self.pads: list[PadEdit] = []
        self.norms: list[NormWidth] = []
        self.norms_over: list[NormOver] = []
        self.picks: list[Pick] = []
        self.computed: dict[str, str] = {}
        self.halvings: list[Node] = []
        self.pinned_nodes: set[Node] = set()
        self.whole: list[tuple[str, str]] = []
        self.values: dict[Node, Any] = {}

    # -- labels ---------------------------------------------------------------------------------

    def fresh(self, size: int) -> Tensor:
        """Make `size` labels never seen before."""
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return labels

    def axis(self, tensor: str, dim: int, role: str) -> Tensor:
        """Return the labels of an axis of a parameter, made at the first call."""
        key = (self.graph.aliases[tensor][0], dim)
        if key not in self.axes:
            size = self.graph.lookup(tensor).shape[dim]
            self.axes[key] = Axis(key[0], dim, role, self.fresh(size))
            if size == 1:
                self.pin(self.axes[key].labels, "a single channel")
            elif not self.graph.is_saved(tensor) and not self._is_repeated(tensor, dim):
                self.pin(self.axes[key].labels, f"{tensor} is a buffer that no file keeps")
            elif compat.is_scripted(self.graph.modules[key[0].rpartition(".")[0]]):
                self.pin(self.axes[key].labels, f"{tensor} is in a ScriptModule")
        return self.axes[key].labels

    def _is_repeated(self, tensor: str, dim: int) -> bool:
        """Tell whether a tensor holds the same for each channel; a file can leave that out."""
        value = self.graph.lookup(tensor)
        return bool((value == value.narrow(dim, 0, 1)).all())

    def equal(self, first: Tensor, second: Tensor) -> None:
        """State that two label arrays, broadcast against each other, are the same channels."""
        first, second = torch.broadcast_tensors(first, second)
        self.edges.append((first.reshape(-1), second.reshape(-1)))

    def pin(self, labels: Tensor, reason: str) -> None:
        """State that these labels must stay."""
        if labels.numel():
            self.pins.append((labels.reshape(-1).unique(), reason))

    def agree(self, first: Sequence[Field], second: Sequence[Field], reason: str) -> None:
        """State that as many of both go: they go together, or stay if they cannot."""
        one, other = (
            torch.cat([f.reshape(-1) for f in fields] or [torch.empty(0, dtype=torch.int64)])
            for fields in (first, second)
        )
        self.agreements.append((one, other, reason))

    def pin_inputs(self, node: Node, reason: str) -> None:
        """Pin every channel that an operator sees, in values, parameters and sizes it is given."""
        for source in node.all_input_nodes:
            name = self.parameter(source)
            if name is not None:
                # Its axes may be met only later: by a layer that has the same parameter.
                self.whole.append((self.graph.aliases[name][0], reason))
            for field in flat(self.values.get(source, ())):
                self.pin(field, reason)
        call = self.graph.called.get(node)
        for source, dim in frozenset().union(*call.reads) if call is not None else ():
            for field in flat(self.values.get(source, ())):
                if varying(field) == [dim]:
                    self.pin(field, reason)

    # -- reading the graph ----------------------------------------------------------------------

    def opaque(self, node: Node) -> Any:
        """Give up on an operator: what it reads keeps its width."""
        self.pin_inputs(node, f"read by {op_name(node)}, which mixes channels, at {location(node)}")
        return ()

    def fields(self, node: Any) -> Fields:
        """Return the fields of an argument; a parameter used as a value gets all its axes."""
        if not isinstance(node, Node):
            return ()
        if node.op == "placeholder" and node.name in self.graph.tensors:
            name = self.graph.tensors[node.name]
            shape = self.graph.lookup(name).shape
            made = []
            for dim, size in enumerate(shape):
                if size > 1:
                    stat = name in self.graph.buffers and not self.graph.acts_on_channels(node)
                    role = "stat" if stat else "scale"
                    made.append(place(self.axis(name, dim, role), len(shape), dim))
            return tuple(made)
        return tuple(flat(self.values.get(node, ())))

    def parameter(self, node: Any) -> str | None:
        """Return the dotted name when an argument is a parameter or buffer itself."""
        if isinstance(node, Node) and node.op == "placeholder":
            return self.graph.tensors.get(node.name)
        return None

    def channel(self, node: Any, dim: int, reason: str) -> tuple[Tensor | None, Fields]:
        """Split the fields of an argument into its channel labels along `dim` and the rest.

        A field that runs along `dim` together with another dimension cannot be followed and is
        pinned with `reason`.
        """
        own: Tensor | None = None
        rest: list[Field] = []
        dim %= len(shape_of(node))
        for field in self.fields(node):
            along = varying(field)
            if along == [dim] and own is None:
                own = field.reshape(-1)
            elif dim in along:
                self.pin(field, reason)
            else:
                rest.append(field)
        return own, tuple(rest)

    def channel_alone(self, x: Any, dim: int, node: Node) -> Tensor | None:
        """Return the channel labels along `dim` of what an operator reads; all else is pinned."""
        reason = f"channels mixed with space at {location(node)}"
        own, rest = self.channel(x, dim, reason)
        for field in rest:
            self.pin(field, reason)
        return own

    def _joined(self) -> np.ndarray:
        """Close the edges into classes: one number for each label."""
        if self.edges:
            first = torch.cat([a for a, _ in self.edges]).numpy()
            second = torch.cat([b for _, b in self.edges]).numpy()
        else:
            first = second = np.zeros(0, dtype=np.int64)
        links = coo_matrix((np.ones(len(first), np.int8), (first, second)), (self.count,) * 2)
        return connected_components(links, directed=False)[1].astype(np.int64)

    def result(self) -> ChannelMap:
        """Close the edges into classes."""
        classes = self._joined()
        for one, other, reason in self.agreements:
            both = [np.unique(classes[x.numpy()]) for x in (one, other)]
            if np.array_equal(both[0], both[1]):
                continue
            if len(one) == len(other) and not np.isin(both[0], both[1]).any():
                self.equal(one, other)
            else:
                self.pin(torch.cat([one, other]), reason)
            classes = self._joined()
        pinned: dict[int, str] = {}
        whole = dict(reversed(self.whole))
        kept = [(a.labels, whole[a.tensor]) for a in self.axes.values() if a.tensor in whole]
        for labels, reason in [*self.pins, *kept]:
            for number in np.unique(classes[labels.numpy()]):
                pinned.setdefault(int(number), reason)
        return ChannelMap(
            classes=classes,
            pinned=pinned,
            axes=self.axes,
            reads=tuple(self.reads),
            mixes=tuple(self.mixes),
            balances=tuple(self.balances),
            pads=tuple(self.pads),
            norms=tuple(self.norms),
            norms_over=tuple(self.norms_over),
            picks=tuple(self.picks),
            computed=self.computed,
            halvings=tuple(self.halvings),
            values=self.values,
        )


def flat(value: Any) -> list[Field]:
    """Fields of a value or, for an operator with several results, of all of them."""
    if isinstance(value, list):
        return [field for item in value for field in item]
    return list(value)


def run_on(node: Node, tensors: Sequence[Tensor | None]) -> Any:
    """Run an operator on other tensors in place of its tensor arguments, in order."""
    supply = iter(tensors)

    def swap(argument: Any) -> Any:
        return next(supply) if isinstance(argument, Node) else argument

    args = torch.fx.node.map_aggregate(node.args, swap)
    kwargs = torch.fx.node.map_aggregate(node.kwargs, swap)
    return node.target(*args, **kwargs)  # type: ignore[operator]
