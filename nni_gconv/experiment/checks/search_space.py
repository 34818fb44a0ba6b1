"""NNI's search spaces: what is wrong with one, and how many trials a grid of it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.tuning import COST_LISTS, check_cost_lists

_TYPES = (
    "choice", "randint", "uniform", "quniform", "loguniform", "qloguniform",
    "normal", "qnormal", "lognormal", "qlognormal",
)  # fmt: skip


def check_space(space: Any, where: str = "search space") -> None:
    """Refuse a search space that NNI would stumble over.

    A choice between mappings that all have a ``_name`` is a nested one: the rest of each mapping
    is a search space of its own.

    Raises
    ------
    ConfigError
        The first thing found wrong.

    Examples
    --------
    >>> check_space({"prune.budget.macs": {"_type": "choise", "_value": [0.5]}})
    Traceback (most recent call last):
        ...
    nni_gconv.errors.ConfigError: search space 'prune.budget.macs': unknown type 'choise'; ...
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(f"the {where} must be a mapping of names, not {space!r:.60}")
    for name, spec in space.items():
        _check_spec(spec, f"{where} {name!r}")


def _check_spec(spec: Any, where: str) -> None:
    if not isinstance(spec, Mapping) or {"_type", "_value"} != set(spec) - set(COST_LISTS):
        raise ConfigError(f"{where}: must have _type and _value and nothing else, not {spec!r:.60}")
    kind, values = spec["_type"], spec["_value"]
    if kind not in _TYPES:
        raise ConfigError(unknown_name("type", kind, _TYPES, where))
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: _value must be a list, not {values!r:.60}")
    if kind == "choice":
        _check_choices(values, where)
        check_cost_lists(spec, where)  # of our tuner; NNI's pass over them
        return
    check_cost_lists(spec, where)
    count = 3 if kind.startswith("q") else 2
    if len(values) != count or not all(_number(v) for v in values):
        raise ConfigError(f"{where}: {kind} takes {count} numbers, not {values!r:.60}")
    _check_range(kind, values, where)


def _check_range(kind: str, values: list[Any], where: str) -> None:
    """Check the numbers of a range: what NNI's tuners draw from it, or die of."""
    first, second, *step = values
    shown = f"{where}: {kind} {values}"
    if step and step[0] <= 0:
        raise ConfigError(f"{shown}: the step, the third number, must be over 0")
    if "normal" in kind:
        if second <= 0:
            raise ConfigError(f"{shown}: the standard deviation must be over 0")
        return
    if first >= second:
        raise ConfigError(f"{shown}: the first number must be below the second")
    if "log" in kind and first <= 0:
        raise ConfigError(f"{shown}: the numbers of a logarithmic range must be over 0")
    if kind == "randint" and not all(float(value).is_integer() for value in values):
        raise ConfigError(f"{shown}: must be whole numbers")


def check_batch_space(space: Any) -> None:
    """Refuse what NNI's BatchTuner does not take: it has one key, a list of whole settings.

    Raises
    ------
    ConfigError
        It is another space.

    Examples
    --------
    >>> check_batch_space({"combine_params": {"_type": "choice", "_value": [{"a": 1}, {"a": 2}]}})
    """
    spec = next(iter(space.values()), None) if isinstance(space, Mapping) else None
    values = spec.get("_value") if isinstance(spec, Mapping) else None
    whole = isinstance(values, list) and values and all(isinstance(v, Mapping) for v in values)
    if len(space or ()) != 1 or not whole or spec is None or spec.get("_type") != "choice":
        raise ConfigError(
            "the search space of BatchTuner is one choice of whole settings: "
            "{combine_params: {_type: choice, _value: [{a: 1, b: 2}, {a: 3, b: 4}]}}"
        )


def _check_choices(values: list[Any], where: str) -> None:
    named = [isinstance(value, Mapping) and "_name" in value for value in values]
    if not any(named) and any(isinstance(value, Mapping) for value in values):
        raise ConfigError(f"{where}: a choice between mappings needs a _name in each of them")
    if any(named) and not all(named):
        odd = values[named.index(False)]
        raise ConfigError(f"{where}: either every choice has a _name or none, not {odd!r:.60}")
    for value in values if all(named) else ():
        inner = {key: spec for key, spec in value.items() if key != "_name"}
        if inner:
            check_space(inner, f"{where}, {value['_name']!r}:")


def _number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def grid_size(space: Mapping[str, Any]) -> int | None:
    """Return how many trials try everything; None where there is something but choices.

    Examples
    --------
    >>> tries = {"_type": "choice", "_value": [1, 2, 3]}
    >>> methods = {"_type": "choice", "_value": [{"_name": "a"}, {"_name": "b", "times": tries}]}
    >>> grid_size({"method": methods, "seed": tries})
    12
    """
    sizes = []
    for spec in space.values():
        if spec["_type"] != "choice":
            return None
        branches = [_branch_size(value) for value in spec["_value"]]
        if None in branches:
            return None
        sizes.append(sum(size or 0 for size in branches))
    return math.prod(sizes)


def open_keys(space: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters for which there is more than one value.

    Examples
    --------
    >>> only = {"_type": "choice", "_value": [8]}
    >>> methods = {"_type": "choice", "_value": [{"_name": "a"}, {"_name": "b", "epochs": only}]}
    >>> open_keys({"method": methods, "seed": only})
    {'method'}
    """
    found = set()
    for name, spec in space.items():
        values = spec["_value"] if spec["_type"] == "choice" else ()
        if len(values) != 1:
            found.add(name)
        for value in values:
            if isinstance(value, Mapping) and "_name" in value:
                found |= open_keys({key: inner for key, inner in value.items() if key != "_name"})
    return found


def _branch_size(value: Any) -> int | None:
    if not isinstance(value, Mapping) or "_name" not in value:
        return 1
    return grid_size({key: spec for key, spec in value.items() if key != "_name"})
