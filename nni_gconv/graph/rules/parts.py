"""Channels cut into parts: chunks, splits, and views that make two dimensions of one.

A smaller model cuts what it has into the same number of parts. That is the same cut only if every
part lost as many channels (a chunk, whose parts go on one by one), or the same ones (a view, whose
parts stand side by side in one tensor and keep one shape). Whether the forward asks for a number
of parts or for a width that is written down shows when the small model is traced. A width that a
module holds in an attribute is set to what is kept.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd
from typing import Any

import torch
from torch.fx import Node

from nni_gconv.graph.channel_map import Balance, Field, SizeUse, compress, varying
from nni_gconv.graph.channels import Walker, run_on
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import argument
from nni_gconv.graph.sizes import HELD, Origin, Reads, Sum
from nni_gconv.graph.trace import location

_CHUNKS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk"})
_VIEWS = frozenset({"view", "reshape", "_unsafe_view", "unflatten"})


def deal(walker: Walker, node: Node, field: Field, pieces: list[Field]) -> bool:
    """Balance the parts of a chunk; tell whether the operator was one.

    With as many channels gone from each part the same call deals the rest out the same way, if it
    asks for a number of parts; one that asks for a width is found out when the small model runs.
    """
    if not _all_dealt_out(node, field, pieces):
        return False
    asked = _Asked(walker, node)
    if asked.by_attributes:
        return _deal_by_attributes(walker, node, pieces, asked)
    if len({piece.shape for piece in pieces}) > 1 or pieces[0].numel() == 1:
        return False
    origins = asked.origins
    if op_name(node) != "chunk" and origins is not None and not all(origins):
        walker.pin(field, width_written_at(node))
        return True
    labels = torch.cat([piece.reshape(-1) for piece in pieces])
    numbers = torch.arange(len(pieces)).repeat_interleave(pieces[0].numel())
    where = f"equal parts of {op_name(node)} at {location(node)}"
    walker.balances.append(Balance(labels, numbers, where))
    _confirm(walker, node)
    return True


def _deal_by_attributes(walker: Walker, node: Node, pieces: list[Field], asked: _Asked) -> bool:
    """Let attributes follow what is kept of each part; a part of a written width stays."""
    single = len(asked.origins or ()) == 1
    if single and len({piece.shape for piece in pieces}) > 1:
        return False  # the last part is what is left over
    for number, piece in enumerate(pieces):
        _note_size(walker, node, piece, asked, 0 if single else number)
    _confirm(walker, node)
    return True


def _note_size(walker: Walker, node: Node, piece: Field, asked: _Asked, place: int) -> None:
    """Note that there are as many channels in a piece as a size that was asked for says."""
    total = asked.sums[place]
    if total is not None:
        walker.sizes.append(SizeUse(node, total, piece.reshape(-1)))
    elif asked.origins is not None and not asked.origins[place]:
        walker.pin(piece, width_written_at(node))


def take_part(walker: Walker, node: Node, field: Field) -> bool:
    """Follow a slice of the channels whose bounds follow them; tell whether it was one.

    A bound may be an attribute, which is set to what is kept before it, or a share of the width:
    then all such shares lose as many. What lies before a bound that is written down stays.
    """
    if op_name(node) != "slice" or len(varying(field)) != 1:
        return False
    labels, step = field.reshape(-1), argument(node, 4, "step", 1)
    if argument(node, 1, "dim", 0) % field.dim() != varying(field)[0] or step != 1:
        return False
    call = walker.graph.called.get(node)
    width = labels.numel()
    for place, name in enumerate(("start", "end")):
        bound = argument(node, 2 + place, name)
        if bound is None or bound >= width or bound <= -width or bound == 0:
            continue
        before = labels[:bound] if bound > 0 else labels[bound:]
        origin = Origin() if call is None or call.origins is None else call.origins[place]
        total = None if call is None else call.sums[place]
        if total is not None:
            total = total if bound > 0 else total.times(Fraction(-1))
            walker.sizes.append(SizeUse(node, total, before))
        elif origin - {HELD}:
            parts = width // gcd(width, bound)
            number = torch.arange(parts).repeat_interleave(width // parts)
            where = f"equal parts of {op_name(node)} at {location(node)}"
            walker.balances.append(Balance(labels, number, where))
        elif not origin:
            walker.pin(before, f"a part of the channels taken at {location(node)}")
    _confirm(walker, node)
    return True


def pin_written(walker: Walker, node: Node, piece: Field) -> None:
    """Pin channels that a view puts into a dimension whose size is a number in the code."""
    if op_name(node) in _VIEWS:
        asked = _Asked(walker, node)
        if any(asked.origin(d) == Origin() and not asked.left_open(d) for d in varying(piece)):
            walker.pin(piece, width_written_at(node))
        elif len(varying(piece)) == 1 and HELD in (asked.origin(varying(piece)[0]) or ()):
            _note_size(walker, node, piece, asked, varying(piece)[0] - asked.first)
            _confirm(walker, node)


def tie_sizes(walker: Walker, node: Node, pieces: list[Field]) -> None:
    """State that a view's sizes follow the tensors that they were read from, not what it views.

    ``self.q(x).view(b, c, h * w)`` with ``c`` of `x` works if `q` and `x` lose equally many.
    """
    if op_name(node) not in _VIEWS or not walker.sizes_agree:
        return
    asked = _Asked(walker, node)
    for dim in range(len(shape_of(node))):
        others = [(x, d) for x, d in asked.reads(dim) if x is not node.args[0]]
        if not others:
            continue
        read = [f for x, d in others for f in walker.fields(x) if varying(f) == [d]]
        viewed = [piece for piece in pieces if dim in varying(piece)]
        reason = f"a size of another tensor is asked for at {location(node)}"
        walker.agree(read, viewed, reason)


def width_written_at(node: Node) -> str:
    """Say why an operator's channels stay: the forward counts on so many of them."""
    return f"a width is written in the forward, met at {location(node)}"


def _all_dealt_out(node: Node, field: Field, pieces: list[Field]) -> bool:
    """Tell whether all channels are dealt out, in order, into parts."""
    if op_name(node) not in _CHUNKS or len(pieces) < 2:
        return False
    return (
        len(varying(field)) == 1
        and sum(piece.numel() for piece in pieces) == field.numel()
        and torch.equal(torch.cat([p.reshape(-1) for p in pieces]), field.reshape(-1))
    )


def fold_split(walker: Walker, node: Node, field: Field, piece: Field) -> Field | None:
    """Fold channels that a view splits over several dimensions back onto one of them.

    Channels at the same place of each part are tied, so that all parts keep one shape. Their
    labels then run along a single dimension, the one that follows the width, and whatever comes
    behind (a transpose, a flatten, a sum over the parts) needs no rule of its own.

    Returns
    -------
    Tensor or None
        None when the operator splits no channels.
    """
    if op_name(node) not in _VIEWS or len(varying(field)) != 1:
        return None
    along = _split_over(node, field, piece)
    if len(along) < 2:
        return None
    asked = _Asked(walker, node)
    following = _following(asked, along, shape_of(node), varying(field)[0])
    free = [d for d in along if asked.origin(d) != Origin() or asked.left_open(d)]
    if following is not None and len(free) > 1:
        walker.folds[node] = field.reshape(-1)
        following = free[0] if node in walker.whole_parts else following
    if following is None:
        walker.pin(field, width_written_at(node))
        following = along[-1]
    folded = piece
    for dim in along:
        if dim != following:
            folded = folded.narrow(dim, 0, 1)
    walker.equal(piece, folded)
    _confirm(walker, node)
    return folded


def _split_over(node: Node, field: Field, piece: Field) -> list[int]:
    """Dimensions of the result over which a view spreads the one along which the labels run."""
    labels = field.reshape(-1)
    if len(labels.unique()) == len(labels):
        return varying(piece)
    # Of channels that stand there several times the labels alone do not tell.
    places = torch.arange(len(labels)).view(field.shape).expand(shape_of(node.args[0]))
    return varying(compress(run_on(node, [places.contiguous()])))


def _following(asked: _Asked, along: list[int], shape: tuple[int, ...], dim: int) -> int | None:
    """Say which dimension grows with the channels; the others hold the number of parts.

    None: all of them are numbers in the code.
    """
    known = {d: origin for d in along if (origin := asked.origin(d)) is not None}
    for wanted in (
        [d for d in along if asked.counts_channels(d)],
        [d for d, origin in known.items() if dim in origin],
        [d for d, origin in known.items() if origin - {0, HELD}],
        [d for d in along if asked.left_open(d)],
        [d for d, origin in known.items() if origin - {0}],
        along if len(known) < len(along) else [],
    ):
        if wanted:
            return max(wanted, key=lambda d: (shape[d], d))
    return None


class _Asked:
    """The sizes that a view or a split was asked for.

    Attributes
    ----------
    origins : tuple of frozenset of int, or None
        Where each size comes from, as far as the trace has seen it.
    first : int
        Dimension of a view's result that the first size speaks of.
    """

    def __init__(self, walker: Walker, node: Node) -> None:
        self._walker, self._node = walker, node
        call = walker.graph.called.get(node)
        self.origins = None if call is None else call.origins
        self.sums: tuple[Sum | None, ...] = () if call is None else call.sums
        self._reads = () if call is None else call.reads
        unflattens = op_name(node) == "unflatten"
        self.first = int(node.args[1]) % len(shape_of(node.args[0])) if unflattens else 0  # type: ignore[arg-type]
        self._sizes: Any = node.args[2 if unflattens else 1]

    @property
    def by_attributes(self) -> bool:
        """Tell whether any size was asked for by attributes of modules."""
        return any(HELD in origin for origin in self.origins or ())

    def origin(self, dim: int) -> Origin | None:
        """Dimensions from which the size of one of the result follows; None: not known."""
        known = self.origins or ()
        return known[dim - self.first] if 0 <= dim - self.first < len(known) else None

    def reads(self, dim: int) -> Reads:
        """Values, and of each the dimension, from which the size of one of the result was read."""
        place = dim - self.first
        return self._reads[place] if 0 <= place < len(self._reads) else Reads()

    def counts_channels(self, dim: int) -> bool:
        """Tell whether a size was read where channels of another value run."""
        read = [(x, d) for x, d in self.reads(dim) if x is not self._node.args[0]]
        return any(varying(field) == [d] for x, d in read for field in self._walker.fields(x))

    def left_open(self, dim: int) -> bool:
        """Tell whether the size was asked to be -1."""
        place = dim - self.first
        return 0 <= place < len(self._sizes) and bool(self._sizes[place] == -1)


def _confirm(walker: Walker, node: Node) -> None:
    if node not in walker.pinned_nodes and node not in walker.halvings:
        walker.halvings.append(node)
