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
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.fx import Node

from nni_gconv import compat
from nni_gconv.graph.channel_map import (
    Axis,
    Balance,
    ChannelMap,
    Field,
    Fields,
    MeanOver,
    Mix,
    NormOver,
    NormWidth,
    PadEdit,
    Pick,
    Read,
    SizeUse,
    place,
    varying,
)
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.sizes import Sum, independent
from nni_gconv.graph.trace import Graph, location
from nni_gconv.graph.weights import computed_weights


class Walker:
    """Collects labels, edges and pins while the rules visit the operators in order."""

    def __init__(
        self, graph: Graph, *, sizes_agree: bool = False, whole: frozenset[Node] = frozenset()
    ) -> None:
        self.graph = graph
        #: Views that make parts of channels, of which whole parts are to go.
        self.whole_parts = whole
        #: Views that leave that open, and the channels that they deal out.
        self.folds: dict[Node, Tensor] = {}
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
        self.means_over: list[MeanOver] = []
        self.picks: list[Pick] = []
        self.sizes: list[SizeUse] = []
        self.computed: dict[str, str] = {}
        #: Weights that are computed -> the parameters that they are made from.
        self.sources = computed_weights(graph)
        self._source_shapes = {n: graph.lookup(n).shape for n in self.sources.values()}
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
            roles = self._roles(node, name, len(shape))
            return tuple(
                place(self.axis(name, dim, role), len(shape), dim)
                for dim, role in enumerate(roles)
                if shape[dim] > 1
            )
        return tuple(flat(self.values.get(node, ())))

    def _roles(self, node: Node, name: str, rank: int) -> Sequence[str]:
        """Say what the axes of a parameter do that is used as a value; kernels have none."""
        if name in self._source_shapes:
            return ("row", "column")
        if any(u in self.sources for u in node.users) and rank > 1:
            # A fixed pattern, say, that weights are multiplied with.
            shapes = [self._source_shapes[self.sources[u]] for u in node.users if u in self.sources]
            if self.graph.lookup(name).shape in shapes:
                return ("stat", "stat")
        stat = name in self.graph.buffers and not self.graph.acts_on_channels(node)
        return ["stat" if stat else "scale"] * rank

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

    def _free_sizes(self) -> list[SizeUse]:
        """Balance what the same attributes count; attributes that have to stay pin it."""
        by_total: dict[Sum, list[SizeUse]] = {}
        for use in self.sizes:
            fixed = [a for a, _ in use.total.terms if a in self.graph.fixed]
            if fixed:
                where = f"met at {location(use.node)}"
                self.pin(use.labels, f"{fixed[0]} is more than a width to the forward, {where}")
            else:
                by_total.setdefault(use.total, []).append(use)
        for total, uses in by_total.items():
            parts = torch.arange(len(uses))
            sizes = torch.tensor([use.labels.numel() for use in uses])
            labels = torch.cat([use.labels for use in uses])
            where = f"parts that {total} counts at {location(uses[0].node)}"
            if len(uses) > 1:
                self.balances.append(Balance(labels, parts.repeat_interleave(sizes), where))
        free = independent(list(by_total))
        return [uses[0] for uses, own in zip(by_total.values(), free, strict=True) if own]

    def result(self) -> ChannelMap:
        """Close the edges into classes."""
        sizes = self._free_sizes()
        classes = self._joined()
        for one, other, reason in self.agreements:
            both = [np.unique(classes[x.numpy()]) for x in (one, other)]
            if np.array_equal(both[0], both[1]):
                continue
            if len(one) == len(other) and not np.isin(both[0], both[1]).any():
                self.equal(one, other)
            elif len(one) == len(both[0]) and _divides(both[1], both[0]):
                # As many of every part of the one: a head's width is a share of the stream's.
                places = other[np.unique(classes[other.numpy()], return_index=True)[1]]
                self.equal(one.view(-1, len(places)), places)
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
            means_over=tuple(self.means_over),
            picks=tuple(self.picks),
            sizes=tuple(sizes),
            computed=self.computed,
            halvings=tuple(self.halvings),
            values=self.values,
        )


def _divides(few: np.ndarray, many: np.ndarray) -> bool:
    """Tell whether as many of some classes as of others, all different, stand in each part."""
    return 0 < len(few) < len(many) and len(many) % len(few) == 0 and not np.isin(few, many).any()


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
