"""Settings that are declared once: names, types and ranges, checked where they are given.

A section of a recipe or the options of a pruning method are a class with typed fields, as in
pydantic. What does not fit is one line that says what, where, what is allowed, and the nearest
right name.

>>> from pydantic import Field
>>> class Settings(Checked):
...     rate: float = Field(0.1, gt=0, le=1, description="Learning rate.")
>>> checked(Settings, {"rate": 2.0})
Traceback (most recent call last):
...
nni_gconv.errors.ConfigError: rate: 2.0 is not allowed (a number above 0, up to 1)
>>> checked(Settings, {"rat": 0.5})
Traceback (most recent call last):
...
nni_gconv.errors.OptionError: unknown option 'rat'; did you mean 'rate'? (allowed: rate)
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nni_gconv.errors import ConfigError, NniGconvError, OptionError, nearest, unknown_name

#: Words for types in messages and tables.
_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


class Checked(BaseModel):
    """Base of settings whose values are taken as they are: no text is read as a number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


C = TypeVar("C", bound=BaseModel)


def checked(kind: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Make settings of values, or say in one line what is wrong with them.

    Parameters
    ----------
    kind : type
        Class of the settings.
    values : mapping of str to value
        What was given.
    where : str, optional
        Place in the user's file, for example ``"prune.options"``.

    Raises
    ------
    OptionError
        An unknown name.
    ConfigError
        A value that is not allowed, or one that is missing.
    """
    check_names(values, kind.model_fields, where)
    try:
        return kind(**values)
    except ValidationError as error:
        said = _first(error, kind)
        raise ConfigError(f"{where}.{said}" if where else said) from error


def check_names(given: Iterable[str], allowed: Iterable[str], where: str = "") -> None:
    """Raise an OptionError for the first name that is not allowed."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise OptionError(unknown_name("option", name, allowed or ["none"], where))


def _first(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, NniGconvError):
        return str(inner)  # it says itself where
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "missing":
        return f"{key}: this option is needed"
    field = kind.model_fields.get(path[0]) if path else None
    if field is None or (len(path) > 1 and len(_parts(field.annotation)) == 1):
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    key, value = path[0], problem["input"]
    words = choices(field.annotation)
    if words:
        what = field.title or key
        close = nearest(str(value), words, count=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown {what} {value!r}{hint} (allowed: {', '.join(words)})"
    return f"{key}: {value!r} is not allowed ({_words(field.annotation)}{_range(field)})"


def choices(kind: Any) -> list[str]:
    """List the words that a ``Literal`` allows, or one that may be absent; else nothing."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if get_origin(kind) in (Union, types.UnionType):
        inner = [part for part in get_args(kind) if part is not type(None)]
        return choices(inner[0]) if len(inner) == 1 else []
    return []


def allowed_values(field: FieldInfo) -> str:
    """Say in words which values a field takes.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Settings(Checked):
    ...     share: float = Field(0.5, ge=0, lt=1)
    ...     every: int | None = Field(None, ge=1)
    >>> [allowed_values(field) for field in Settings.model_fields.values()]
    ['a number from 0 to below 1', 'a whole number from 1, or null']
    """
    return _words(field.annotation) + _range(field) + _null(field.annotation)


def _parts(kind: Any) -> list[Any]:
    union = get_origin(kind) in (Union, types.UnionType)
    return [part for part in get_args(kind) if part is not type(None)] if union else [kind]


def _null(kind: Any) -> str:
    return ", or null" if type(None) in get_args(kind) else ""


def _words(kind: Any) -> str:
    return " or ".join(dict.fromkeys(_word(part) for part in _parts(kind)))


def _word(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Annotated:
        return _word(get_args(kind)[0])
    if hasattr(origin, "parse"):
        return "a name or a mapping"
    if origin is Literal:
        return ", ".join(str(word) for word in get_args(kind))
    if origin in (list, tuple):
        return "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping | BaseModel):
        return "a mapping"
    return _WORDS.get(origin, "any")


def _range(field: FieldInfo) -> str:
    found: dict[str, float] = {}
    for rule in field.metadata:
        found.update(
            {k: v for k in ("ge", "gt", "le", "lt") if (v := getattr(rule, k, None)) is not None}
        )
    low = high = ""
    if "ge" in found:
        low = f" from {_shown(found['ge'])}"
    elif "gt" in found and int in _parts(field.annotation):
        low = f" from {_shown(found['gt'] + 1)}"
    elif "gt" in found:
        low = f" above {_shown(found['gt'])}"
    if "le" in found:
        high = (
            f" to {_shown(found['le'])}"
            if "ge" in found
            else f"{',' * bool(low)} up to {_shown(found['le'])}"
        )
    elif "lt" in found:
        high = f"{' to' if 'ge' in found else ','} below {_shown(found['lt'])}"
    return low + high


def _shown(number: float) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)
