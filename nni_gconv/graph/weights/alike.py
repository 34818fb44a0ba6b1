"""Modules that differ in their numbers alone: what is found of one holds for the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

Found = TypeVar("Found")
#: What was found so far, by what was looked for and the kind of module.
Known = dict[Hashable, Any]

_PLAIN = (int, float, str, torch.dtype, type(None))
#: What every module holds.
_EVERY = frozenset(vars(nn.Module()))
_LOOKED_AT = ("_parameters", "_modules", "training")


def kind_of(module: nn.Module) -> Hashable | None:
    """Say what a module is but for its numbers: class, attributes, children, shapes of parameters.

    Returns
    -------
    Hashable or None
        None where more than that may matter: it has hooks, buffers or attributes that are neither
        numbers nor words, or a child has.

    Examples
    --------
    >>> kind_of(nn.Linear(2, 3)) == kind_of(nn.Linear(2, 3)) != kind_of(nn.Linear(3, 3))
    True
    >>> kind_of(nn.BatchNorm2d(2)) is None
    True
    """
    own = vars(module)
    if any(own.get(name) for name in _EVERY if name not in _LOOKED_AT):
        return None
    more = [(name, value) for name, value in own.items() if name not in _EVERY]
    for _, value in more:
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, _PLAIN) for part in parts):
            return None
    shapes = [(n, None if p is None else p.shape) for n, p in module._parameters.items()]
    children = [(n, kind_of(child)) for n, child in module.named_children()]
    if any(kind is None for _, kind in children):
        return None
    # 1, 1.0 and True are equal, and may mean different things.
    return type(module), repr(more), tuple(shapes), tuple(children)


def once(known: Known | None, module: nn.Module, find: Callable[[Any], Found]) -> Found:
    """Find something out of a module, of those that are alike only once.

    Parameters
    ----------
    known : dict or None
        What was found so far; is added to. None: nothing is remembered.
    module : nn.Module
    find : callable
        Looks at the module, but not at its numbers.

    Examples
    --------
    >>> known, seen = {}, []
    >>> for width in (2, 2, 3):
    ...     once(known, nn.Linear(width, 1), seen.append)
    >>> len(seen)
    2
    """
    kind = None if known is None else kind_of(module)
    if known is None or kind is None:
        return find(module)
    if (find, kind) not in known:
        known[find, kind] = find(module)
    found: Found = known[find, kind]
    return found
