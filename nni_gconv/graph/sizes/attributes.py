"""Widths that modules hold in attributes of their own, and what they have to be in a small model.

``torch.split(x, [self.dim, self.rest], 1)`` asks for numbers that no layer holds. While a model is
traced these numbers know their attribute (:mod:`nni_gconv.graph.sizes.origins`); every place where
a forward asks for one, or for a sum of several, is an equation between attributes and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix
from torch import nn

from nni_gconv import compat

#: Attributes that follow the weights of torch's own layers.
_LAYERS: tuple[tuple[tuple[type, ...], frozenset[str]], ...] = (
    ((nn.modules.conv._ConvNd,), frozenset({"in_channels", "out_channels"})),
    ((nn.Linear,), frozenset({"in_features", "out_features"})),
    ((nn.modules.batchnorm._NormBase,), frozenset({"num_features"})),
    ((nn.GroupNorm,), frozenset({"num_channels"})),
)
#: Under which a module remembers what was set.
MARK = "cut_widths"
_FOREIGN = ("torch", "nni_gconv")


@dataclass(frozen=True, order=True)
class Attribute:
    """An integer that a module holds.

    Attributes
    ----------
    module : str
        Dotted name, the first of several.
    name : str
        Of the attribute.
    place : int
        Position in a list or tuple; -1: the attribute is the integer.
    follows : bool
        It is a layer's width, which is cut with the layer.
    """

    module: str
    name: str
    place: int = -1
    follows: bool = False

    def __str__(self) -> str:
        owner = f"{self.module}.{self.name}".lstrip(".")
        return owner if self.place < 0 else f"{owner}[{self.place}]"


@dataclass(frozen=True)
class Sum:
    """A sum of multiples of attributes and a number: ``self.dim - self.rest``."""

    terms: tuple[tuple[Attribute, Fraction], ...]
    rest: Fraction = Fraction(0)

    def __str__(self) -> str:
        parts = [str(a) if times == 1 else f"{times} * {a}" for a, times in self.terms]
        return " + ".join([*parts, *([str(self.rest)] if self.rest else [])])

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        """Add a multiple of another sum."""
        found = dict(self.terms)
        for attribute, times in other.terms:
            found[attribute] = found.get(attribute, Fraction(0)) + factor * times
        terms = tuple(sorted((a, t) for a, t in found.items() if t))
        return Sum(terms, self.rest + factor * other.rest)

    def times(self, factor: Fraction) -> Sum:
        """Multiply with a number."""
        return Sum(tuple((a, t * factor) for a, t in self.terms if factor), self.rest * factor)


def attributes_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """List module, its name and the attribute's for all that hold integers a forward may ask for.

    Of torch's layers only widths, which follow what is cut; of others every integer above one,
    lists and tuples of integers too.
    """
    for path, module in model.named_modules():
        if compat.is_scripted(module):
            continue
        foreign = type(module).__module__.partition(".")[0] in _FOREIGN
        for name, value in vars(module).items():
            wide = _is_wide(value) or (
                type(value) in (list, tuple) and any(_is_wide(item) for item in value)
            )
            if wide and (not foreign or is_layer_width(module, name)):
                yield module, path, name


def is_layer_width(module: nn.Module, name: str) -> bool:
    """Tell whether an attribute is a width of one of torch's layers."""
    return any(isinstance(module, types) and name in names for types, names in _LAYERS)


def _is_wide(value: Any) -> bool:
    return type(value) is int and value > 1


@contextmanager
def attributes_exchanged(model: nn.Module, make: Callable[[int, Attribute], int]) -> Iterator[None]:
    """Put other integers into the attributes of modules for a while."""
    changed: list[tuple[nn.Module, str, Any]] = []
    for module, path, name in list(attributes_of(model)):
        value, follows = vars(module)[name], is_layer_width(module, name)
        changed.append((module, name, value))
        if type(value) is int:
            vars(module)[name] = make(value, Attribute(path, name, follows=follows))
        else:
            vars(module)[name] = type(value)(
                make(item, Attribute(path, name, place)) if _is_wide(item) else item
                for place, item in enumerate(value)
            )
    try:
        yield
    finally:
        for module, name, value in changed:
            vars(module)[name] = value


def set_attributes(model: nn.Module, new: Mapping[Attribute, int]) -> None:
    """Give attributes of modules other integers, and let the modules remember which.

    Examples
    --------
    >>> block = nn.Module()
    >>> block.split = [8, 8]
    >>> set_attributes(block, {Attribute("", "split", 1): 5})
    >>> block.split, block.cut_widths
    ([8, 5], {'split': [8, 5]})
    """
    for attribute, value in new.items():
        module = model.get_submodule(attribute.module)
        old = getattr(module, attribute.name)
        if attribute.place < 0:
            made: Any = value
        else:
            made = type(old)(value if i == attribute.place else n for i, n in enumerate(old))
        setattr(module, attribute.name, made)
        known = {**widths_of(module), attribute.name: made}
        setattr(module, MARK, known)


def widths_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that :func:`set_attributes` has set, and what they are."""
    return dict(vars(module).get(MARK, {}))


# -- equations -------------------------------------------------------------------------------------


def independent(sums: Sequence[Sum]) -> list[bool]:
    """Tell for each of several sums whether it can be set although those before it are."""
    matrix, _ = _matrix(sums)
    basis: list[np.ndarray] = []
    found = []
    for row in matrix:
        rest = row / np.linalg.norm(row)
        for direction in basis:
            rest = rest - (rest @ direction) * direction
        found.append(bool(np.linalg.norm(rest) > 1e-6))
        if found[-1]:
            basis.append(rest / np.linalg.norm(rest))
    return found


def solve(asked: Mapping[Sum, int], old: Callable[[Attribute], int]) -> dict[Attribute, int] | None:
    """Find integers for attributes so that every sum is what it is asked to be.

    Parameters
    ----------
    asked : mapping of Sum to int
        Independent sums and their new values.
    old : callable
        What an attribute is now. None becomes larger, and each stays as large as it can.

    Returns
    -------
    dict of Attribute to int, or None
        Attributes that change. None: there are no such integers.

    Examples
    --------
    >>> dim, rest = Attribute("", "dim"), Attribute("", "rest")
    >>> first = Sum(((rest, Fraction(1)),))
    >>> second = Sum(((dim, Fraction(1)), (rest, Fraction(-1))))
    >>> {str(a): n for a, n in solve({first: 3, second: 2}, lambda _: 8).items()}
    {'dim': 5, 'rest': 3}
    """
    if not asked:
        return {}
    matrix, attributes = _matrix(list(asked))
    wanted = np.array([float(value - one.rest) for one, value in asked.items()])
    most = np.array([old(attribute) for attribute in attributes])
    found = milp(
        -np.ones(len(most)),
        constraints=LinearConstraint(csr_matrix(matrix), wanted, wanted),
        integrality=np.ones(len(most)),
        bounds=Bounds(1, most),
    )
    if found.x is None:
        return None
    new = np.rint(found.x).astype(int).tolist()
    return {a: n for a, n, before in zip(attributes, new, most, strict=True) if n != before}


def _matrix(sums: Sequence[Sum]) -> tuple[np.ndarray, list[Attribute]]:
    """Write sums as rows over the attributes that they hold."""
    attributes = sorted({a for one in sums for a, _ in one.terms})
    column = {attribute: i for i, attribute in enumerate(attributes)}
    matrix = np.zeros((len(sums), len(attributes)))
    for row, one in enumerate(sums):
        for attribute, times in one.terms:
            matrix[row, column[attribute]] = float(times)
    return matrix, attributes
