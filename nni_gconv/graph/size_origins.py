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
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from nni_gconv.graph.recorder import op_name, shape_of

#: Dimensions that a size was worked out from; empty: a number in the code.
Origin = frozenset[int]
#: Tensors, and of each the dimension, that a size was read from.
Reads = frozenset[tuple[Any, int]]

_READS = (Tensor.shape.__get__, Tensor.size, Tensor.numel)  # type: ignore[attr-defined]
#: Function -> name of its operator and the position of the sizes among its arguments.
_ASKS: dict[Any, tuple[str, int]] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape), ("view", 1)),
    **dict.fromkeys((Tensor.unflatten, torch.unflatten), ("unflatten", 2)),
    **dict.fromkeys((Tensor.split, torch.split), ("split", 1)),
    **dict.fromkeys((Tensor.chunk, torch.chunk), ("chunk", 1)),
}
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
        ``view``, ``unflatten``, ``split`` or ``chunk``.
    source : tuple of int
        Shape of what it was called on.
    shapes : tuple of tuple of int
        Shapes of its results.
    origins : tuple of frozenset of int, or None
        For each size that was asked for the dimensions it was worked out from; empty for a number
        in the code. None: not known.
    reads : tuple of frozenset of (Node, int)
        For each size that was asked for the values, and of each the dimension, it was read from;
        while the forward runs, the tensors' ids.
    """

    index: int
    name: str
    source: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    origins: tuple[Origin, ...] | None
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
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.lost = False

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
    """An integer that knows which dimensions it was worked out from."""

    reads: Reads
    log: SizeLog

    @classmethod
    def of(cls, value: int, reads: Reads, log: SizeLog) -> _Size:
        made = cls(value)
        made.reads, made.log = reads, log
        return made

    @property
    def origin(self) -> Origin:
        return Origin(dim for _, dim in self.reads)

    def __truediv__(self, other: Any) -> Any:
        quotient = int.__truediv__(self, other)
        return quotient if quotient is NotImplemented else _Ratio.of(quotient, self)

    def __int__(self) -> int:
        self.log.lost = True
        return int.__int__(self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __neg__(self) -> _Size:
        return _Size.of(int.__neg__(self), self.reads, self.log)


def _follows(name: str) -> Callable[[_Size, Any], Any]:
    def method(self: _Size, other: Any) -> Any:
        value = getattr(int, f"__{name}__")(self, other)
        if value is NotImplemented:
            if isinstance(other, float):
                self.log.lost = True
            return value
        return _Size.of(value, self.reads | getattr(other, "reads", Reads()), self.log)

    return method


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
        return _Size.of(value, self.size.reads, self.size.log)

    def __floor__(self) -> int:
        return self._rounded(math.floor(float(self)))

    def __ceil__(self) -> int:
        return self._rounded(math.ceil(float(self)))

    __trunc__ = __floor__  # sizes are not negative

    def __round__(self, digits: Any = None) -> Any:
        return self._rounded(round(float(self))) if digits is None else round(float(self), digits)

    def __int__(self) -> int:
        self.size.log.lost = True
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
        return result

    def _remember(self, x: Tensor, read: Any, dim: int | None = None) -> Any:
        if isinstance(read, int):
            dims = range(x.dim()) if dim is None else [dim % x.dim()]
            return _Size.of(read, Reads((id(x), d) for d in dims), self.log)
        return _Shape(_Size.of(n, Reads([(id(x), d)]), self.log) for d, n in enumerate(read))


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

    model.forward = watched  # type: ignore[method-assign]
    try:
        yield log
    finally:
        if own:
            model.forward = forward  # type: ignore[method-assign]
        else:
            del model.forward
