"""Which sizes in a forward follow the shapes that it meets, and which are written down.

``x.view(n, 2, c // 2, h, w)`` works at any width if `c` was read off a tensor, and at one width
only if it is a number in the code; a traced graph holds the same integers for both. While a model
is traced, shapes are therefore made of integers that remember which dimension they come from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.sizes.attributes import Attribute, Sum, attributes_exchanged

#: Dimensions that a size was worked out from; empty: a number in the code.
Origin = frozenset[int]
#: Stands among them for an attribute of a module.
HELD = -1
#: Tensors, and of each the dimension, that a size was read from.
Reads = frozenset[tuple[Any, int]]

_READS = (Tensor.shape.__get__, Tensor.size, Tensor.numel)  # type: ignore[attr-defined]
#: Function -> name of its operator and the position of the sizes among its arguments.
_ASKS: dict[Any, tuple[str, int]] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape), ("view", 1)),
    **dict.fromkeys((Tensor.unflatten, torch.unflatten), ("unflatten", 2)),
    **dict.fromkeys((Tensor.split, torch.split), ("split", 1)),
    **dict.fromkeys((Tensor.split_with_sizes, torch.split_with_sizes), ("split", 1)),
    **dict.fromkeys((Tensor.chunk, torch.chunk), ("chunk", 1)),
}
_ITEM = Tensor.__getitem__
_CALLED = frozenset(name for name, _ in _ASKS.values())
_NAMES = {"reshape": "view", "_unsafe_view": "view", "split_with_sizes": "split"}
_ARITHMETIC = "add radd sub rsub mul rmul floordiv rfloordiv mod rmod rshift lshift".split()


@dataclass(frozen=True, eq=False)
class Call:
    """One view or split of a forward.

    Attributes
    ----------
    index : int
        Its number in the forward.
    name : str
        ``view``, ``unflatten``, ``split``, ``chunk`` or ``slice``, which asks for begin and end.
    source : tuple of int
        Shape of what it was called on.
    shapes : tuple of tuple of int
        Shapes of its results.
    origins : tuple of frozenset of int, or None
        For each size that was asked for the dimensions it was worked out from; empty for a number
        in the code. None: not known.
    sums : tuple of Sum or None
        For each size what it is in terms of attributes of modules, if it is a sum of them.
    result : int
        Id of the tensor that a slice returned.
    reads : tuple of frozenset of (Node, int)
        For each size that was asked for the values, and of each the dimension, it was read from;
        while the forward runs, the tensors' ids.
    """

    index: int
    name: str
    source: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    origins: tuple[Origin, ...] | None
    sums: tuple[Sum | None, ...] = ()
    result: int = 0
    reads: tuple[Reads, ...] = ()

    def in_terms_of(self, known: Mapping[int, Node]) -> Call:
        """Name values by their nodes; those that have none are left out."""
        reads = tuple(Reads((known[i], d) for i, d in of if i in known) for of in self.reads)
        return replace(self, reads=reads)


class SizeLog:
    """What a forward asked of views and splits, in order.

    Attributes
    ----------
    calls : list of Call
        In the order of the forward.
    lost : bool
        True once a size was turned into a plain number: nothing asked after that is certain.
    fixed : set of Attribute
        Attributes that are used for more than sizes: they have to stay what they are.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.lost = False
        self.fixed: set[Attribute] = set()

    def add(self, name: str, x: Tensor, result: Any, sizes: Sequence[Any]) -> None:
        """Write down one call."""
        results = [result] if isinstance(result, Tensor) else result
        origins = tuple(getattr(size, "origin", Origin()) for size in sizes)
        reads = tuple(getattr(size, "reads", Reads()) for size in sizes)
        # Not one that follows, not even the batch: shapes remembered from another call, it seems.
        doubtful = name == "view" and not any(origins) and -1 not in sizes
        self.calls.append(
            Call(
                index=len(self.calls),
                name=name,
                source=tuple(x.shape),
                shapes=tuple(tuple(r.shape) for r in results),
                origins=None if self.lost or doubtful else origins,
                sums=tuple(getattr(size, "sum", None) for size in sizes),
                result=id(result),
                reads=() if self.lost or doubtful else reads,
            )
        )

    def match(self, nodes: Sequence[Node], known: Mapping[int, Node]) -> dict[Node, Call]:
        """Find the call of each traced operator; calls of torch's own are left out.

        Parameters
        ----------
        nodes : sequence of Node
            In the order they ran.
        known : mapping of int to Node
            Id of a tensor of that run -> its node.
        """
        found: dict[Node, Call] = {}
        for call in self.calls:
            sliced = known.get(call.result) if call.name == "slice" else None
            if sliced is not None and op_name(sliced) == "slice":
                found[sliced] = call.in_terms_of(known)
        position = 0
        for node in nodes:
            name = op_name(node) if node.op == "call_function" else ""
            name = _NAMES.get(name, name)
            value = node.meta.get("val")
            if name not in _CALLED or value is None:
                continue
            results = [value] if isinstance(value, Tensor) else value
            shapes = tuple(tuple(r.shape) for r in results)
            source = shape_of(node.args[0])
            for call in self.calls[position:]:
                if (call.name, call.source, call.shapes) == (name, source, shapes):
                    found[node], position = call.in_terms_of(known), call.index + 1
                    break
        return found


class _Size(int):
    """An integer that knows which dimensions, and which attributes, it was worked out from."""

    reads: Reads
    log: SizeLog
    held: frozenset[Attribute]
    sum: Sum | None

    @classmethod
    def of(
        cls,
        value: int,
        reads: Reads,
        log: SizeLog,
        held: frozenset[Attribute] = frozenset(),
        total: Sum | None = None,
    ) -> _Size:
        made = cls(value)
        made.reads, made.log, made.held, made.sum = reads, log, held, total
        return made

    @property
    def origin(self) -> Origin:
        found = Origin(dim for _, dim in self.reads)
        return found | {HELD} if self.held else found

    def fix(self) -> None:
        """Note that this is used for more than sizes."""
        self.log.fixed |= self.held

    def lose(self) -> None:
        """Note that this goes on as a plain number."""
        self.fix()
        self.log.lost |= bool(self.reads)

    def __truediv__(self, other: Any) -> Any:
        self.fix()
        quotient = int.__truediv__(self, other)
        return quotient if quotient is NotImplemented else _Ratio.of(quotient, self)

    def __rtruediv__(self, other: Any) -> Any:
        self.lose()
        return int.__rtruediv__(self, other)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        self.lose()
        return int.__rpow__(self, other)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        self.fix()
        return int.__pow__(self, other) if modulo is None else int.__pow__(self, other, modulo)

    def __float__(self) -> float:
        self.fix()
        return int.__float__(self)

    def __int__(self) -> int:
        self.lose()
        return int.__int__(self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __neg__(self) -> _Size:
        total = None if self.sum is None else self.sum.times(Fraction(-1))
        return _Size.of(int.__neg__(self), self.reads, self.log, self.held, total)


def _follows(name: str) -> Callable[[_Size, Any], Any]:
    def method(self: _Size, other: Any) -> Any:
        value = getattr(int, f"__{name}__")(self, other)
        if value is NotImplemented:
            if isinstance(other, float):
                self.lose()
            return value
        reads = self.reads | getattr(other, "reads", Reads())
        held = self.held | getattr(other, "held", frozenset())
        return _Size.of(value, reads, self.log, held, _total(name, self, other))

    return method


def _total(name: str, one: _Size, other: Any) -> Sum | None:
    """Work out a sum of attributes, if it is one."""
    known = other.sum if isinstance(other, _Size) else Sum((), Fraction(int(other)))
    if name == "floordiv" and isinstance(other, _Size):
        other.fix()  # a number of parts
        known = Sum((), Fraction(int.__int__(other)))
    if one.sum is None or known is None:
        return None
    if name in ("add", "radd"):
        return one.sum.plus(known)
    if name in ("sub", "rsub"):
        total = one.sum.plus(known, -1)
        return total if name == "sub" else total.times(Fraction(-1))
    if name in ("mul", "rmul") and not known.terms:
        return one.sum.times(known.rest)
    if name == "floordiv" and known.rest and not int.__mod__(one, int.__int__(other)):
        return one.sum.times(1 / known.rest)
    return None


for _name in _ARITHMETIC:
    setattr(_Size, f"__{_name}__", _follows(_name))


class _Shape(tuple):
    """A shape made of such integers; as much of ``torch.Size``, which cannot be derived from."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return _Shape(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> _Shape:
        return _Shape(tuple.__add__(self, tuple(other)))

    def numel(self) -> int:
        """Return the product of the sizes."""
        return math.prod(self)


class _Ratio(float):
    """A size divided by something, until it is rounded."""

    size: _Size

    @classmethod
    def of(cls, value: float, size: _Size) -> _Ratio:
        made = cls(value)
        made.size = size
        return made

    def _rounded(self, value: int) -> _Size:
        return _Size.of(value, self.size.reads, self.size.log, self.size.held)

    def __floor__(self) -> int:
        return self._rounded(math.floor(float(self)))

    def __ceil__(self) -> int:
        return self._rounded(math.ceil(float(self)))

    __trunc__ = __floor__  # sizes are not negative

    def __round__(self, digits: Any = None) -> Any:
        return self._rounded(round(float(self))) if digits is None else round(float(self), digits)

    def __int__(self) -> int:
        self.size.lose()
        return float.__int__(self)


class _Watch(TorchFunctionMode):
    def __init__(self, log: SizeLog) -> None:
        super().__init__()
        self.log = log

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS:
            return self._remember(args[0], result, *args[1:], **(kwargs or {}))
        name, at = _ASKS.get(func, ("", 0))
        if name and len(args) > at:
            whole = isinstance(args[at], list | tuple)
            sizes = args[at] if whole else args[at:] if name == "view" else args[at : at + 1]
            self.log.add(name, args[0], result, sizes)
        elif func is _ITEM and (bounds := _bounds(args[1])) is not None:
            self.log.add("slice", args[0], result, bounds)
        else:
            _fix(args)
            _fix((kwargs or {}).values())
        return result

    def _remember(self, x: Tensor, read: Any, dim: int | None = None) -> Any:
        if isinstance(read, int):
            dims = range(x.dim()) if dim is None else [dim % x.dim()]
            return _Size.of(read, Reads((id(x), d) for d in dims), self.log)
        return _Shape(_Size.of(n, Reads([(id(x), d)]), self.log) for d, n in enumerate(read))


def _bounds(index: Any) -> tuple[Any, Any] | None:
    """Begin and end of the only slice of an index, if an attribute or a shape says them."""
    parts = index if isinstance(index, tuple) else (index,)
    slices = [p for p in parts if isinstance(p, slice) and not _is_whole(p)]
    others = [p for p in parts if not isinstance(p, slice) and p is not Ellipsis]
    if len(slices) != 1 or others or slices[0].step not in (None, 1):
        return None
    known = any(isinstance(bound, _Size) for bound in (slices[0].start, slices[0].stop))
    return (slices[0].start, slices[0].stop) if known else None


def _is_whole(one: slice) -> bool:
    return one.start is None and one.stop is None and one.step is None


def _fix(values: Any, depth: int = 3) -> None:
    """Note attributes among the arguments of a function that takes numbers for what they are."""
    for value in values:
        if isinstance(value, _Size):
            value.fix()
        elif isinstance(value, list | tuple) and depth:
            _fix(value, depth - 1)
        elif isinstance(value, slice) and depth:
            _fix((value.start, value.stop), depth - 1)


@contextmanager
def watch_sizes(model: nn.Module) -> Iterator[SizeLog]:
    """Let a model's forward work with sizes that know where they come from."""
    log = SizeLog()
    forward = model.forward
    own = "forward" in model.__dict__

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        log.calls.clear()  # an export may run the forward twice: the last run counts
        log.lost = False
        with _Watch(log):
            return forward(*args, **kwargs)

    def know(value: int, attribute: Attribute) -> int:
        total = None if attribute.follows else Sum(((attribute, Fraction(1)),))
        return _Size.of(value, Reads(), log, frozenset({attribute}), total)

    model.forward = watched  # type: ignore[method-assign]
    try:
        with attributes_exchanged(model, know):
            yield log
    finally:
        if own:
            model.forward = forward  # type: ignore[method-assign]
        else:
            del model.forward
