"""Operators that join, move, pad, pool or sum up channels: one small rule per family.

Most need no rule of their own: they are run on the label arrays themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from nni_gconv.graph.channels import (
    Field,
    Fields,
    PadEdit,
    Walker,
    compress,
    op_name,
    run_on,
    shape_of,
    varying,
)
from nni_gconv.graph.rules.registry import MOVES, PASSES, POOLS, argument, merge, place, rule
from nni_gconv.graph.rules.splits import deal, fold_split, pin_written
from nni_gconv.graph.trace import location

__all__: list[str] = []

#: Operators that pick positions along one dimension: where that argument stands.
_SELECTS = {
    **dict.fromkeys(("select", "slice", "narrow", "unbind"), (1, "dim")),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), (2, "dim")),
}


@rule("cat")
def concatenate(walker: Walker, node: Node) -> Fields:
    """Along the channels the labels are concatenated; along others the inputs are tied."""
    parts: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    dim = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    reason = f"channels mixed with space at {location(node)}"
    split = [walker.channel(part, dim, reason) for part in parts]
    merged: list[Field] = []
    for _, rest in split:
        for field in rest:
            merge(walker, merged, field)
    for field in merged:
        along = set(varying(field))
        if not all(any(along & set(varying(f)) for f in rest) for _, rest in split):
            walker.pin(field, f"beside a tensor of fixed width at {location(node)}")
    if all(own is None for own, _ in split):
        return tuple(merged)
    labels = []
    for part, (own, _) in zip(parts, split, strict=True):
        if own is not None:
            labels.append(own)
            continue
        labels.append(walker.fresh(shape_of(part)[dim]))
        walker.pin(labels[-1], f"concatenated with a tensor of fixed width at {location(node)}")
    return (place(torch.cat(labels), len(shape_of(node)), dim), *merged)


# -- moving data ----------------------------------------------------------------------------------


@rule(*PASSES)
def passes(walker: Walker, node: Node) -> Fields:
    """The value itself."""
    return walker.fields(node.args[0])


@rule("getitem")
def item(walker: Walker, node: Node) -> Fields:
    """One of several results."""
    source = walker.values.get(node.args[0], ())  # type: ignore[arg-type]
    return source[node.args[1]] if isinstance(source, list) else tuple(source)  # type: ignore[index]


def _channels_of_image(walker: Walker, node: Node) -> Field | None:
    reason = f"channels mixed with space at {location(node)}"
    own, rest = walker.channel(node.args[0], -3, reason)
    for field in rest:
        walker.pin(field, reason)
    return own


@rule("pixel_shuffle")
def pixel_shuffle(walker: Walker, node: Node) -> Fields:
    """As many channels as make one pixel become one: they live and die together."""
    own = _channels_of_image(walker, node)
    if own is None:
        return ()
    factor = int(node.args[1])  # type: ignore[arg-type]
    blocks = own.view(-1, factor * factor)
    walker.equal(blocks[:, :1], blocks)
    rank = len(shape_of(node))
    return (place(blocks[:, 0].contiguous(), rank, rank - 3),) if len(blocks) > 1 else ()


@rule("pixel_unshuffle")
def pixel_unshuffle(walker: Walker, node: Node) -> Fields:
    """One channel becomes several that stand side by side."""
    own = _channels_of_image(walker, node)
    if own is None:
        return ()
    factor = int(node.args[1])  # type: ignore[arg-type]
    rank = len(shape_of(node))
    return (place(own.repeat_interleave(factor * factor), rank, rank - 3),)


@rule(*MOVES)
def move(walker: Walker, node: Node) -> Any:
    """Do to the labels what the operator does to the data."""
    value = node.meta.get("val")
    several = isinstance(value, list | tuple)
    results: list[list[Field]] = [[] for _ in value] if several else [[]]  # type: ignore[union-attr]
    for field in walker.fields(node.args[0]):
        full = field.expand(shape_of(node.args[0]))
        # A view of the data need not be a view of labels that are stored once and broadcast.
        moved = run_on(node, [full.contiguous() if op_name(node) == "view" else full])
        pieces = [compress(piece) for piece in (moved if several else [moved])]
        folded = None if several else fold_split(walker, node, field, pieces[0])
        if folded is not None:
            pieces = [folded]
        elif not deal(walker, node, field, pieces):
            for problem in _problems(node, field, pieces):
                walker.pin(field, f"{problem} at {location(node)}")
        for result, piece in zip(results, pieces, strict=True):
            if varying(piece):
                pin_written(walker, node, piece)
                result.append(piece)
            else:  # all channels are one by now: nothing tells any more where they run
                walker.pin(piece, f"a single channel at {location(node)}")
    return [tuple(r) for r in results] if several else tuple(results[0])


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


@rule("pad", "constant_pad_nd")
def pad(walker: Walker, node: Node) -> Fields:
    """Padding the channels makes new ones that are zero; their number is the module's to change."""
    x, widths = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    rank = len(shape_of(x))
    padded = {rank - 1 - i // 2 for i, width in enumerate(widths) if width}
    fields = []
    for field in walker.fields(x):
        along = set(varying(field))
        if not along & padded:
            fields.append(field)
            continue
        if len(along) > 1:
            walker.pin(field, f"channels padded together with space at {location(node)}")
            continue
        fields.append(_pad_channels(walker, node, field, along.pop(), widths))
    return tuple(fields)


def _pad_channels(walker: Walker, node: Node, field: Field, dim: int, widths: list[int]) -> Field:
    rank = field.dim()
    entry = 2 * (rank - 1 - dim)
    mode = argument(node, 2, "mode", "constant") if op_name(node) == "pad" else "constant"
    if mode != "constant":
        walker.pin(field, f"channels padded with channels at {location(node)}")
    if widths[entry] < 0 or widths[entry + 1] < 0:
        walker.pin(field, f"channels cropped at {location(node)}")
    front = walker.fresh(max(widths[entry], 0))
    back = walker.fresh(max(widths[entry + 1], 0))
    owner = walker.graph.owner(node)
    module = walker.graph.modules.get(owner)
    value = argument(node, 3 if op_name(node) == "pad" else 2, "value")
    if (
        mode == "constant"
        and not value
        and isinstance(getattr(module, "padding", None), tuple | list)
        and isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d)
    ):
        for other in walker.pads:  # the module is called again: one width for all calls
            if walker.graph.modules[other.module] is module and other.entry == entry:
                walker.equal(other.front, front)
                walker.equal(other.back, back)
        walker.pads.append(PadEdit(owner, entry, front, back))
    else:
        reason = f"the padding of channels is written in the forward at {location(node)}"
        walker.pin(torch.cat([front, back]), reason)
    return place(torch.cat([front, field.reshape(-1), back]), rank, dim)


@rule(*POOLS)
def pool(walker: Walker, node: Node) -> Any:
    """Each channel by itself; what runs along the pooled dimensions keeps its width."""
    fields = walker.fields(node.args[0])
    first = len(shape_of(node.args[0])) - POOLS[op_name(node)]
    for field in fields:
        if any(d >= first for d in varying(field)):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
    kept = tuple(f for f in fields if all(d < first for d in varying(f)))
    value = node.meta.get("val")
    return [kept for _ in value] if isinstance(value, list | tuple) else kept


@rule("mean", "sum", "amax", "amin", "var", "std", "norm", "linalg_vector_norm")
def reduce(walker: Walker, node: Node) -> Fields:
    """Fields along the reduced dimensions are mixed; the others go through."""
    rank = len(shape_of(node.args[0]))
    dims = argument(node, 1, "dim")
    if op_name(node) in ("norm", "linalg_vector_norm"):
        dims = argument(node, 2, "dim")
    if isinstance(dims, bool):  # var(x, unbiased) and std(x, unbiased): over everything
        dims = None
    if isinstance(dims, int):
        dims = [dims]
    gone = {d % rank for d in dims} if dims else set(range(rank))
    keepdim = len(shape_of(node)) == rank
    kept = []
    for field in walker.fields(node.args[0]):
        if gone & set(varying(field)):
            walker.pin(field, f"{op_name(node)} over channels at {location(node)}")
        else:
            kept.append(field if keepdim else field.squeeze(tuple(gone)))
    return tuple(kept)
