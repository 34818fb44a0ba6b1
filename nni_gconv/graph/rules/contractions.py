"""Products summed over a dimension that both operands have: attention, correlations, cosines.

A channel that is zero in one of the operands adds nothing to the sum. All of these are written as
einsum writes them: a letter for each dimension of each operand, and those of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.channel_map import Field, Fields, Mix, varying
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules.registry import argument, channel_rule, constant_rule, merge
from nni_gconv.graph.rules.state import State, Value, channels_of, known, uniform
from nni_gconv.graph.trace import location

_NAMES = ("matmul", "bmm", "mm", "einsum", "cosine_similarity")


@dataclass(frozen=True)
class _Form:
    """Operands and their letters; `alone`: only what is zero in all operands adds nothing."""

    operands: tuple[Any, ...]
    letters: tuple[str, ...]
    result: str
    alone: bool = False


def _form(node: Node) -> _Form | None:
    name = op_name(node)
    if name == "einsum":
        equation = str(node.args[0]).replace(" ", "")
        operands: tuple[Any, ...] = tuple(node.args[1])  # type: ignore[arg-type]
        inputs, arrow, result = equation.partition("->")
        letters = tuple(inputs.split(","))
        repeated = any(len(set(own)) < len(own) for own in letters)
        if not arrow or "." in equation or repeated:
            return None
        return _Form(operands, letters, result)
    first, second = node.args[:2]
    ranks = len(shape_of(first)), len(shape_of(second))
    if name == "cosine_similarity":
        if ranks[0] != ranks[1]:
            return None
        own = _alphabet(ranks[0])
        gone = own[int(argument(node, 2, "dim", 1))]
        return _Form((first, second), (own, own), own.replace(gone, ""), alone=True)
    if min(ranks) < 2:
        return None
    batch = _alphabet(max(ranks) - 2)
    ends = [batch[len(batch) - (rank - 2) :] for rank in ranks]
    return _Form((first, second), (ends[0] + "xy", ends[1] + "yz"), batch + "xz")


def _alphabet(count: int) -> str:
    return "abcdefghijklm"[:count]


@channel_rule(*_NAMES)
def contract(walker: Walker, node: Node) -> Fields:
    """What meets at one letter is tied; what is summed over has to be zero to go."""
    form = _form(node)
    if form is None:
        return walker.opaque(node)
    labels: dict[str, list[Tensor]] = {}
    fixed: set[str] = set()
    for operand, letters in zip(form.operands, form.letters, strict=True):
        shape = shape_of(operand)
        found: dict[str, Tensor] = {}
        for field in walker.fields(operand):
            along = varying(field)
            if len(along) == 1 and letters[along[0]] not in found:
                found[letters[along[0]]] = field.reshape(-1)
            else:
                walker.pin(field, f"channels mixed with space at {location(node)}")
        fixed |= {x for x, size in zip(letters, shape, strict=True) if size > 1 and x not in found}
        for letter, own in found.items():
            labels.setdefault(letter, []).append(own)
    fields = []
    for letter, several in labels.items():
        for other in several[1:]:
            walker.equal(several[0], other)
        if letter in fixed:
            walker.pin(several[0], f"multiplied with a tensor of fixed width at {location(node)}")
        if letter in form.result:
            view = [-1 if x == letter else 1 for x in form.result]
            fields.append(several[0].view(view))
        else:
            walker.mixes.append(Mix(node, several[0], letter))
    return tuple(fields)


@constant_rule(*_NAMES)
def contract_constants(state: State, node: Node) -> Value:
    """Zero where one operand is zero along all that is summed over."""
    form = _form(node)
    if form is None:
        return None
    summed = set(chain(*form.letters)) - set(form.result)
    values = [state.get(operand) for operand in form.operands]
    for letter in summed:
        zeros = [
            _zero(value, letters, letter)
            for value, letters in zip(values, form.letters, strict=True)
            if letter in letters
        ]
        size = max(len(z) for z in zeros)
        stacked = torch.stack([z.expand(size) for z in zeros])
        gone = stacked.all(0) if form.alone else stacked.any(0)
        width = max(
            shape_of(x)[letters.index(letter)]
            for x, letters in zip(form.operands, form.letters, strict=True)
            if letter in letters
        )
        state.given[node, letter] = torch.where(gone, 0.0, torch.nan).double().expand(width)
    found = torch.full([1] * len(form.result), torch.nan, dtype=torch.float64)
    for value, letters in zip(values, form.letters, strict=True):
        if value is not None:
            own = uniform(value, [d for d, x in enumerate(letters) if x in summed])
            kept = [d for d, x in enumerate(letters) if x not in summed]
            own = own.squeeze([d for d in range(own.dim()) if d not in kept])
            own = own.permute(*_order([letters[d] for d in kept], form.result))
            missing = [x not in letters for x in form.result]
            for d, absent in enumerate(missing):
                own = own.unsqueeze(d) if absent else own
            found = torch.where(own == 0, 0.0, found)
    return known(found)


def _zero(value: Value, letters: str, letter: str) -> Tensor:
    """Tell along one letter where an operand is zero whatever the others are."""
    if value is None:
        return torch.zeros(1, dtype=torch.bool)
    rest = [d for d, x in enumerate(letters) if x != letter]
    return (uniform(value, rest) == 0).reshape(-1)


def _order(own: list[str], result: str) -> list[int]:
    return [own.index(x) for x in result if x in own]


# -- attention as one operator ---------------------------------------------------------------------


@channel_rule("scaled_dot_product_attention")
def attend(walker: Walker, node: Node) -> Fields:
    """Whole heads go, and channels of the values; those of queries and keys if a scale is given."""
    operands = [x for x in (*node.args[:3], argument(node, 3, "attn_mask")) if isinstance(x, Node)]
    rank, scaled = len(shape_of(node)), node.kwargs.get("scale") is not None
    heads: list[Field] = []
    summed: list[Tensor] = []
    own: list[Field] = []
    for operand in operands:
        for field in walker.fields(operand):
            aligned = field.reshape((1,) * (rank - field.dim()) + tuple(field.shape))
            along = varying(aligned)
            if len(along) == 1 and along[0] < rank - 2:
                merge(walker, heads, aligned)
            elif along == [rank - 1] and operand is node.args[2]:
                own.append(aligned)
            elif along == [rank - 1] and scaled and operand in node.args[:2]:
                summed.append(field.reshape(-1))
            elif along == [rank - 1] and operand in node.args[:2]:
                walker.pin(field, f"scaled by the width of a head at {location(node)}")
            else:
                walker.pin(field, f"positions of an attention at {location(node)}")
    if summed:
        walker.equal(summed[0], summed[-1])
        walker.mixes.append(Mix(node, summed[0]))
        if len(summed) == 1:
            walker.pin(summed[0], f"multiplied with a tensor of fixed width at {location(node)}")
    for field in heads:
        dim = varying(field)[0]
        for operand in operands:
            at = dim - rank + len(shape_of(operand))
            runs = any(varying(f) == [at] for f in walker.fields(operand))
            if at >= 0 and shape_of(operand)[at] > 1 and not runs:
                walker.pin(field, f"meets a tensor of fixed width at {location(node)}")
    return (*heads, *own)


@constant_rule("scaled_dot_product_attention")
def attend_constants(state: State, node: Node) -> Value:
    """Zero where the values are, whatever attends to what."""
    rank = len(shape_of(node))
    queries, keys = (channels_of(state, x, -1) for x in node.args[:2])
    state.given[node, 0] = torch.where((queries == 0) | (keys == 0), 0.0, torch.nan).double()
    value = state.get(node.args[2])
    if value is None:
        return None
    value = uniform(value, [rank - 2])
    return known(torch.where(value == 0, 0.0, torch.nan))
