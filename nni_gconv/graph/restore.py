"""What a forward keeps beyond its call, put back as it was found.

While a model is traced its tensors hold no numbers. Detectors keep their grids in lists, others
keep masks in dicts, in objects, in ``functools.lru_cache`` or in a global: such a tensor would make
every later call wrong. What can be reached from the model, its classes and the modules that define
them is restored; caches of functions are emptied; what is kept elsewhere is an error.
"""

from __future__ import annotations

import functools
import gc
import operator
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.errors import TraceError

#: A container with more entries is not looked into: it is data, no cache.
_MOST = 10_000
#: Types of values in which nothing can be kept, and of what belongs to everyone.
_CLOSED = (
    Tensor, str, bytes, int, float, complex, type(None), type, types.ModuleType,
    types.BuiltinFunctionType, types.FrameType, types.GeneratorType,
)  # fmt: skip
_PLAIN = frozenset({nn.Parameter, Tensor, str, bool, int, float, type(None), type})
_DICTS = frozenset({dict, OrderedDict})
_OWN = __name__.rpartition(".")[0]
_CACHED = type(functools.lru_cache(lambda: None))


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Put back what a forward changes in its modules, and in all that they hold."""
    owned = _Snapshot([model])
    shared = _Snapshot(_namespaces(model), inside_objects=False)
    try:
        yield
    finally:
        owned.restore(lambda _: True)
        shared.restore(_holds_fake)


class _Snapshot:
    """What containers and objects held at one moment."""

    def __init__(self, roots: Iterable[Any], *, inside_objects: bool = True) -> None:
        self._before: list[tuple[Any, dict[Any, Any] | list[Any] | set[Any]]] = []
        self._seen: dict[int, Any] = {}
        self._inside_objects = inside_objects
        waiting = list(roots)
        while waiting:
            value = waiting.pop()
            # By the exact type first: a network of a thousand modules holds 20,000 empty dicts.
            if type(value) in _PLAIN or id(value) in self._seen or isinstance(value, _CLOSED):
                continue
            self._seen[id(value)] = value
            if type(value) in _DICTS and not value:
                self._before.append((value, {}))
            else:
                waiting += self._open(value)

    def restore(self, wanted: Callable[[Any], bool]) -> None:
        """Put back what has changed, of those whose new contents are such that it is `wanted`."""
        for holder, before in self._before:
            if not before and type(holder) in _DICTS and not holder:
                continue
            now = _contents(holder)
            if not _same(before, now) and wanted(now):
                _fill(holder, before)

    def _open(self, value: Any) -> Iterable[Any]:
        """Write down what a value holds now, and return it."""
        inside: Iterable[Any] = ()
        if isinstance(value, tuple | frozenset):
            inside = value
        elif isinstance(value, _NOTED):
            if not isinstance(value, dict | list | deque | set) or len(value) <= _MOST:
                inside = self._note(value)
        elif isinstance(value, types.FunctionType):
            inside = (value.__closure__ or ()) if self._inside_objects else ()
        elif isinstance(value, types.MethodType):
            inside = (value.__self__, value.__func__)
        elif isinstance(value, functools.partial):
            inside = (value.func, value.args, value.keywords)
        elif isinstance(value, nn.Module) or (self._inside_objects and not _is_foreign(value)):
            inside = (getattr(value, "__dict__", None), *([_Slots(value)] * bool(_slots(value))))
        return inside

    def _note(self, holder: Any) -> Iterable[Any]:
        before = _contents(holder)
        self._before.append((holder, before))
        return before.values() if isinstance(before, dict) else before


class _Namespace:
    """The names of a class or of a Python module, which cannot be written to as a dict."""

    def __init__(self, of: Any) -> None:
        self.of = of


class _Slots:
    """The attributes of an object whose class names them in ``__slots__``."""

    def __init__(self, of: Any) -> None:
        self.of = of


#: What can be written down and filled again.
_NOTED = (dict, list, deque, set, types.CellType, _Namespace, _Slots)


def _is_foreign(value: Any) -> bool:
    """Tell whether an object is no part of the model: torch's, Python's, or the tracer's own."""
    module = type(value).__module__
    return module.partition(".")[0] in ("torch", "logging", "threading") or module.startswith(_OWN)


def _namespaces(model: nn.Module) -> list[_Namespace]:
    """Return the classes of a model's modules, and the Python modules that define them."""
    classes = dict.fromkeys(c for m in model.modules() for c in type(m).__mro__)
    own = [c for c in classes if c.__module__.partition(".")[0] not in ("torch", "builtins")]
    files = dict.fromkeys(c.__module__ for c in own)
    return [_Namespace(x) for x in (*own, *(sys.modules[f] for f in files if f in sys.modules))]


def _slots(value: Any) -> list[str]:
    named = (getattr(c, "__slots__", ()) for c in type(value).__mro__)
    names = [n for some in named for n in ([some] if isinstance(some, str) else some)]
    return [n for n in names if n not in ("__dict__", "__weakref__")]


def _contents(holder: Any) -> dict[Any, Any] | list[Any] | set[Any]:
    """Return a shallow copy of what something holds."""
    if isinstance(holder, _Namespace):
        return dict(vars(holder.of))
    if isinstance(holder, _Slots):
        names = [name for name in _slots(holder.of) if hasattr(holder.of, name)]
        return {name: getattr(holder.of, name) for name in names}
    if isinstance(holder, types.CellType):
        try:
            return [holder.cell_contents]
        except ValueError:  # a name that is not bound yet
            return []
    if isinstance(holder, dict):
        return dict(holder)
    return set(holder) if isinstance(holder, set) else list(holder)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, set):
        return before == now
    if len(before) != len(now):
        return False
    if isinstance(before, dict):
        return all(key in now and now[key] is value for key, value in before.items())
    return all(map(operator.is_, before, now))


def _fill(holder: Any, before: Any) -> None:
    if isinstance(holder, _Namespace | _Slots):
        now = _contents(holder)
        for name in now.keys() - before.keys():  # type: ignore[union-attr]
            delattr(holder.of, name)
        for name, value in before.items():
            if now.get(name, holder) is not value:  # type: ignore[union-attr]
                setattr(holder.of, name, value)
    elif isinstance(holder, types.CellType):
        if before:
            holder.cell_contents = before[0]
        else:
            del holder.cell_contents
    else:
        holder.clear()
        (holder.extend if isinstance(holder, list | deque) else holder.update)(before)


def _holds_fake(value: Any, depth: int = 4) -> bool:
    """Tell whether a fake tensor stands somewhere in a container."""
    if isinstance(value, Tensor):
        return compat.is_fake(value)
    if depth and isinstance(value, dict | list | tuple | set | deque) and len(value) <= _MOST:
        inner = value.values() if isinstance(value, dict) else value
        return any(_holds_fake(x, depth - 1) for x in inner)
    return False


# -- what is kept elsewhere -----------------------------------------------------------------------


def refuse_leaks(made: Sequence[weakref.ref[Tensor]]) -> None:
    """Empty the caches of functions that hold what a trace has made; say who else does.

    Parameters
    ----------
    made : sequence of weak references
        To the trace's tensors, after the trace itself has let go of them.

    Raises
    ------
    TraceError
        Something outside the model keeps one.
    """
    if not any(ref() is not None for ref in made):
        return
    gc.collect()
    left = [tensor for ref in made if (tensor := ref()) is not None]
    if not left:
        return
    for cached in [x for x in gc.get_objects() if type(x) is _CACHED]:
        if _reaches_fake(cached):
            cached.cache_clear()  # type: ignore[attr-defined]
    del left
    left = [tensor for ref in made if (tensor := ref()) is not None]
    for tensor in left:
        for holder in gc.get_referrers(tensor):
            if holder is not left and not isinstance(holder, types.FrameType):
                where = _name(holder, tensor)
                _drop(holder, tensor)
                raise TraceError(
                    f"the forward keeps a tensor it has made in {where}, outside the model: keep "
                    "it in an attribute of the module, or make it in each call"
                )


def _reaches_fake(cached: Any) -> bool:
    seen, waiting = {id(cached)}, [cached]
    while waiting:
        for value in gc.get_referents(waiting.pop()):
            if isinstance(value, Tensor) and compat.is_fake(value):
                return True
            inside = isinstance(value, dict | list | tuple) or "lru" in type(value).__name__
            if inside and id(value) not in seen and len(seen) < _MOST:
                seen.add(id(value))
                waiting.append(value)
    return False


def _name(holder: Any, tensor: Tensor) -> str:
    """Name what holds a tensor, as a user would find it."""
    kind = type(holder).__name__
    if not isinstance(holder, dict | list):
        return f"an object of type {kind}"
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is holder or (holder is module.__dict__ and value is tensor):
                return f"{module.__name__}.{name}"
    return f"a {kind}"


def _drop(holder: Any, tensor: Tensor) -> None:
    """Take a tensor out of a cache; a name of a Python module stays what it is."""
    if isinstance(holder, dict) and "__name__" not in holder:
        for key in [key for key, value in holder.items() if value is tensor]:
            del holder[key]
    elif isinstance(holder, list):
        holder[:] = [value for value in holder if value is not tensor]
