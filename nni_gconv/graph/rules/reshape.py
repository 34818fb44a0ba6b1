"""What moves data and changes none: views, transposes, slices, copies, shuffles.

Most need no rule of their own: they are run on the label arrays, or on the constants, themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channel_map import Field, Fields, compress, place, varying
from nni_gconv.graph.channels import Walker, run_on
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.parts import deal, fold_split, pin_written, take_part, tie_sizes
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule
from nni_gconv.graph.rules.state import State, Value, channels_of, known, moved, per_channel, squash
from nni_gconv.graph.trace import location

#: Values go through unchanged (in eval mode).
PASSES = frozenset(
    "dropout feature_dropout alpha_dropout contiguous clone detach to _to_copy alias "
    "lift_fresh_copy type_as".split()
)
#: Operators that only move data: run on the labels themselves.
_MOVES = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t numpy_T "
    "swapaxes swapdims movedim moveaxis expand broadcast_to select slice narrow split "
    "split_with_sizes unsafe_split unsafe_chunk chunk tensor_split unbind repeat tile "
    "repeat_interleave flip roll".split()
)
#: Operators that pick positions along one dimension: where that argument stands.
_SELECTS = {
    **dict.fromkeys(("select", "slice", "narrow", "unbind"), (1, "dim")),
    **dict.fromkeys(
        ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"),
        (2, "dim"),
    ),
}


# -- the value itself ------------------------------------------------------------------------------


@channel_rule(*PASSES)
def passes(walker: Walker, node: Node) -> Fields:
    """The value itself."""
    return walker.fields(node.args[0])


@constant_rule(*PASSES)
def passes_constants(state: State, node: Node) -> Value:
    """What is known stays known, unless numbers are rounded to integers or dropped."""
    value, given = node.meta.get("val"), state.get(node.args[0])
    if given is None or not (isinstance(value, Tensor) and value.is_floating_point()):
        return None
    if op_name(node).endswith("dropout") and argument(node, 2, "train"):
        # In training mode only zero stays what it is, and not behind every dropout.
        return None if "alpha" in op_name(node) else known(given.masked_fill(given != 0, torch.nan))
    return given


@channel_rule("getitem")
def item(walker: Walker, node: Node) -> Fields:
    """One of several results."""
    source = walker.values.get(node.args[0], ())  # type: ignore[arg-type]
    return source[node.args[1]] if isinstance(source, list) else tuple(source)  # type: ignore[index]


@constant_rule("getitem")
def item_constants(state: State, node: Node) -> Value:
    """What is known of one of several results."""
    source = state.values.get(node.args[0])
    return source[node.args[1]] if isinstance(source, list) else None  # type: ignore[index]


# -- moves -----------------------------------------------------------------------------------------


@channel_rule(*_MOVES)
def move(walker: Walker, node: Node) -> Any:
    """Do to the labels what the operator does to the data."""
    value = node.meta.get("val")
    several = isinstance(value, list | tuple)
    results: list[list[Field]] = [[] for _ in value] if several else [[]]  # type: ignore[union-attr]
    for field in walker.fields(node.args[0]):
        for result, piece in zip(results, _follow(walker, node, field), strict=True):
            if varying(piece):
                pin_written(walker, node, piece)
                result.append(piece)
            else:  # all channels are one by now: nothing tells any more where they run
                walker.pin(piece, f"a single channel at {location(node)}")
    if not several:
        tie_sizes(walker, node, results[0])
    return [tuple(r) for r in results] if several else tuple(results[0])


def _follow(walker: Walker, node: Node, field: Field) -> list[Field]:
    """Run the operator on one field; pin what a smaller model would not see in its place."""
    full = field.expand(shape_of(node.args[0]))
    # A view of the data need not be a view of labels that are stored once and broadcast.
    moved = run_on(node, [full.contiguous() if op_name(node) == "view" else full])
    if isinstance(moved, Tensor):
        pieces = [compress(moved)]
        if take_part(walker, node, field):
            return pieces
        folded = fold_split(walker, node, field, pieces[0])
        if folded is not None:
            return [folded]
    else:
        pieces = [compress(piece) for piece in moved]
        if deal(walker, node, field, pieces):
            return pieces
    for problem in _problems(node, field, pieces):
        walker.pin(field, f"{problem} at {location(node)}")
    return pieces


@constant_rule(*_MOVES, "channel_shuffle", "native_channel_shuffle")
def move_constants(state: State, node: Node) -> Any:
    """Do to the constants what the operator does to the data."""
    several = isinstance(node.meta.get("val"), list | tuple)
    value = state.get(node.args[0])
    if value is None:
        return [None for _ in node.meta["val"]] if several else None
    return moved(node, value)


def _problems(node: Node, field: Field, pieces: list[Field]) -> list[str]:
    if _selects(node, field):
        return ["a part of the channels taken"]
    return sorted({p for piece in pieces if (p := _not_followed(field, piece))})


def _selects(node: Node, field: Field) -> bool:
    """Tell whether an operator picks channels by their number, which would not be theirs any more.

    The labels alone do not tell: of channels that stand there twice, a half has all labels.
    """
    if op_name(node) not in _SELECTS:
        return False
    shape, value = shape_of(node.args[0]), node.meta["val"]
    dim = int(argument(node, *_SELECTS[op_name(node)], 0)) % len(shape)
    several = isinstance(value, list | tuple)
    whole = len(value) == 1 if several else tuple(value.shape) == shape
    return dim in varying(field) and not whole


def _not_followed(before: Field, after: Field) -> str | None:
    """Say why a smaller model would not see the same channels in the same order, if so."""
    old, new = _first_seen(before), _first_seen(after)
    if len(varying(after)) > 1:
        return "channels split over two dimensions"
    if not np.array_equal(np.sort(old), np.sort(new)):
        return "a part of the channels taken"
    if not np.array_equal(old, new):
        return "channels put in another order"
    return None


def _first_seen(field: Field) -> np.ndarray:
    labels, index = np.unique(field.reshape(-1).numpy(), return_index=True)
    return labels[np.argsort(index, kind="stable")]


@channel_rule("reshape_as", "view_as")
def move_as(walker: Walker, node: Node) -> Fields:
    """Reshape to the sizes of another tensor: as many channels go as go there.

    Masks that are given may have as many of both go that are not tied, as with `tie_sizes`.
    """
    x, other = node.args[:2]
    made = []
    for field in walker.fields(x):
        piece = compress(field.expand(shape_of(x)).reshape(shape_of(node)))
        for problem in _problems(node, field, [piece]):
            walker.pin(field, f"{problem} at {location(node)}")
        made += [piece] if varying(piece) else []
    for dim in range(len(shape_of(node)) if walker.sizes_agree else 0):
        sizes = [f for f in walker.fields(other) if varying(f) == [dim]]
        walker.agree(
            sizes,
            [piece for piece in made if dim in varying(piece)],
            f"a size of another tensor is asked for at {location(node)}",
        )
    return tuple(made)


@constant_rule("reshape_as", "view_as")
def move_as_constants(state: State, node: Node) -> Value:
    """What is known moves with the data."""
    value = state.get(node.args[0])
    if value is None:
        return None
    return known(squash(value.expand(shape_of(node.args[0])).reshape(shape_of(node))))


# -- shuffles --------------------------------------------------------------------------------------


@channel_rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(walker: Walker, node: Node) -> Fields:
    """As a view, a transpose and a flatten: the channels at one place of each group go together."""
    own, rest = walker.channel(node.args[0], 1, f"channels mixed with space at {location(node)}")
    if own is None:
        return rest
    parts = own.view(int(node.args[1]), -1)  # type: ignore[arg-type]
    walker.equal(parts, parts[:1])
    shuffled = parts[0].repeat_interleave(len(parts))
    if parts.shape[1] == 1:
        walker.pin(own, f"one channel in each group of the shuffle at {location(node)}")
    return (place(shuffled, len(shape_of(node)), 1), *rest)


@channel_rule("pixel_shuffle")
def pixel_shuffle(walker: Walker, node: Node) -> Fields:
    """As many channels as make one pixel become one: they live and die together."""
    own = walker.channel_alone(node.args[0], -3, node)
    if own is None:
        return ()
    factor = int(node.args[1])  # type: ignore[arg-type]
    pixels = own.view(-1, factor * factor)
    walker.equal(pixels[:, :1], pixels)
    rank = len(shape_of(node))
    return (place(pixels[:, 0].contiguous(), rank, rank - 3),) if len(pixels) > 1 else ()


@channel_rule("pixel_unshuffle")
def pixel_unshuffle(walker: Walker, node: Node) -> Fields:
    """One channel becomes several that stand side by side."""
    own = walker.channel_alone(node.args[0], -3, node)
    if own is None:
        return ()
    factor = int(node.args[1])  # type: ignore[arg-type]
    rank = len(shape_of(node))
    return (place(own.repeat_interleave(factor * factor), rank, rank - 3),)


@constant_rule("pixel_shuffle", "pixel_unshuffle")
def pixel_constants(state: State, node: Node) -> Value:
    """A channel made of several is known where they agree; one that becomes several is each."""
    rank, squared = len(shape_of(node)), int(node.args[1]) ** 2  # type: ignore[arg-type]
    given = channels_of(state, node.args[0], rank - 3)
    if op_name(node) == "pixel_shuffle":
        parts = given.view(-1, squared)
        given = torch.where((parts == parts[:, :1]).all(1), parts[:, 0], torch.nan)
    else:
        given = given.repeat_interleave(squared)
    return per_channel(given, rank, rank - 3)
