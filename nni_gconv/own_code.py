"""A user's own code by its path, ``package.module:name``: imported in one place, under one rule.

Only what a person wrote into a recipe file or a command may name code. What a tuner sends, what a
file of weights or a folder of results says, never does; ``--no-import`` refuses all of it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError, unknown_name

NO_IMPORT = "NNI_GCONV_NO_IMPORT"
"""Variable that, set to 1, refuses own code in this process and those it starts."""

#: What stands before a colon without naming a module of the user's.
_NAMESPACES = ("torchvision", "timm", "nni")
_PATH = re.compile(r"([^\W\d][\w.]*):[^\W\d][\w.]*")
_NO_CONSTRUCTORS = frozenset(sys.stdlib_module_names) | {"numpy", "torch"}


def names_code(text: object) -> bool:
    """Tell whether a value has the form of a path to own code.

    Examples
    --------
    >>> names_code("mypkg.nets:small"), names_code("torchvision:resnet50"), names_code("cuda:0")
    (True, False, False)
    """
    found = _PATH.fullmatch(text) if isinstance(text, str) else None
    return found is not None and found[1] not in _NAMESPACES


def code_names(data: Any, where: str = "") -> dict[str, str]:
    """Find every value of that form in nested data, by its dotted key.

    Examples
    --------
    >>> code_names({"model": {"name": "os:system"}, "data": {"name": "digits"}})
    {'model.name': 'os:system'}
    """
    if isinstance(data, Mapping):
        items: Any = data.items()
    elif isinstance(data, list | tuple):
        items = enumerate(data)
    else:
        return {where: data} if names_code(data) else {}
    found: dict[str, str] = {}
    for key, value in items:
        found |= code_names(value, f"{where}.{key}" if where else str(key))
    return found


@contextmanager
def importable_here() -> Iterator[None]:
    """Let modules of the working directory be imported, as ``python -m`` does."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def import_own(path: str, where: str, what: str = "name") -> Any:
    """Import what ``package.module:name`` names; modules of the working directory are found too.

    Parameters
    ----------
    path : str
        As a person wrote it.
    where : str
        The key it stands under, for messages.
    what : str
        What the name is of, for messages.

    Raises
    ------
    ConfigError
        Own code is refused (``--no-import``), or which half failed: the module (and why), or the
        name in it.

    Examples
    --------
    >>> import_own("torch.nn:Linear", "model.name").__name__
    'Linear'
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{where}: {path!r} is not of the form 'package.module:name'")
    if os.environ.get(NO_IMPORT) == "1":
        raise ConfigError(f"{where}: {path!r} is own code, which --no-import refuses")
    with importable_here():
        importlib.invalidate_caches()
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            # A user's module may fail with anything; where it does is his to know.
            raise ConfigError(
                f"{where}: module {module_name!r} of {path!r} cannot be imported "
                f"({type(error).__name__}: {error})"
            ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise ConfigError(unknown_name(f"{what} in module {module_name!r}", part, names, where))
        found = getattr(found, part)
    return found


def import_class(path: str, base: type, where: str) -> type:
    """Import a class of the user's that is a subclass of `base`.

    Raises
    ------
    ConfigError
        As :func:`import_own`; or it is no such class.
    """
    found = import_own(path, where)
    if not inspect.isclass(found) or not issubclass(found, base):
        kind = "class" if inspect.isclass(found) else type(found).__name__
        raise ConfigError(f"{where}: {path!r} is a {kind}, not a subclass of {base.__name__}")
    return found


def import_constructor(path: str, made: type, where: str) -> Callable[..., Any]:
    """Import what makes a `made`: such a class, or a function that is known to return one.

    A function counts when its annotation says so, or when it has none and is defined in the package
    that was named. ``os:system`` is neither, and is not called to find out.

    Raises
    ------
    ConfigError
        As :func:`import_own`; or it makes something else.
    """
    found = import_own(path, where, "factory")
    function = found
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isclass(function) and issubclass(function, made):
        return found  # type: ignore[no-any-return]
    if not callable(function) or inspect.isclass(function):
        is_class = inspect.isclass(function)
        what = f"the class {function.__name__}" if is_class else f"a {type(found).__name__}"
        raise ConfigError(f"{where}: {path!r} is {what}, not a constructor of a {made.__name__}")
    returns = _returned(function)
    if inspect.isclass(returns) and returns is not object:
        if issubclass(returns, made):
            return found  # type: ignore[no-any-return]
        raise ConfigError(f"{where}: {path!r} returns a {returns.__name__}, not a {made.__name__}")
    package = path.partition(":")[0].partition(".")[0]
    home = str(getattr(inspect.unwrap(function), "__module__", None) or type(function).__module__)
    if home.partition(".")[0] != package or package in _NO_CONSTRUCTORS:
        raise ConfigError(
            f"{where}: {path!r} is not known to return a {made.__name__}: name a subclass of it, a "
            f"function of {package!r} itself, or one whose annotation says so"
        )
    return found  # type: ignore[no-any-return]


def _returned(function: Any) -> Any:
    """Return the class that a function's annotation names, None where there is none to be had."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that exist for a type checker only
        return None
    found = hints.get("return")
    return None if found is Any else found
