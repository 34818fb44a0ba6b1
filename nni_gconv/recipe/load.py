"""Reading a recipe: YAML, overrides by dotted keys, and errors on one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nni_gconv.errors import ConfigError, NniGconvError, nearest
from nni_gconv.files import files_nearby
from nni_gconv.recipe.schema import Recipe
from nni_gconv.yaml12 import read_yaml

_DEPTH = 64
_LARGEST = 2**64


def load_recipe(
    source: Recipe | Mapping[str, Any] | str | Path,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read a recipe and apply overrides.

    Parameters
    ----------
    source : Recipe, mapping, str or Path
        A recipe, its content, or a YAML file of it.
    overrides : mapping of str to value, optional
        Dotted keys, ``{"prune.budget.macs": 0.5, "prune.config_list.0.sparse_ratio": 0.3}``.

    Returns
    -------
    Recipe

    Raises
    ------
    ConfigError
        The file is missing or no YAML, a key is unknown, or a value is not allowed.
    """
    if isinstance(source, Recipe):
        data, where = source.model_dump(mode="json", exclude_unset=True), "recipe"
    elif isinstance(source, Mapping):
        data, where = dict(source), "recipe"
    else:
        path = Path(source).expanduser()
        data, where = _read(path), path.name
        if "name" not in data:
            data["name"] = path.stem
        data = beside(data, path.parent)
    return parse_recipe(apply_overrides(data, overrides or {}), where)


#: Keys whose values are paths.
_PATHS = (
    ("data", "root"),
    ("model", "weights"),
    ("model", "weights", "file"),
    ("model", "options", "group_config"),
    ("prune", "options", "group_config"),
)


def beside(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Let relative paths in a recipe start from its own folder, where there is such a file.

    Elsewhere they start, as ever, from the working directory.

    Examples
    --------
    >>> beside({"data": {"root": "images"}}, Path("/nowhere"))
    {'data': {'root': 'images'}}
    """
    result = _copy(data)
    for *sections, key in _PATHS:
        place: Any = result
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        value = place.get(key) if isinstance(place, dict) else None
        if not isinstance(value, str) or not value or value.startswith("~"):
            continue
        there = folder / value
        if there.exists() and there.resolve() != Path(value).resolve():
            place[key] = str(there.resolve())
    return result


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no recipe at {path}{files_nearby(path)}")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: expected a mapping of sections, got {type(data).__name__}")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set values by dotted keys; sections that are absent are made, list items go by number.

    Examples
    --------
    >>> apply_overrides({"prune": {"budget": {"macs": 0.5}}}, {"prune.budget.macs": 0.3})
    {'prune': {'budget': {'macs': 0.3}}}
    """
    result = _copy(data)
    for key, value in overrides.items():
        place: Any = result
        parts = key.split(".")
        if len(parts) > _DEPTH:
            raise ConfigError(f"override {key[:60]}...: nested deeper than {_DEPTH} levels")
        for i, part in enumerate(parts[:-1]):
            place = _step(place, part, ".".join(parts[: i + 1]))
        last = parts[-1]
        if isinstance(place, list):
            place[_index(place, last, key)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise ConfigError(f"override {key}: {'.'.join(parts[:-1])} is no section")
    return result


def _copy(data: Any, where: str = "", depth: int = 0) -> Any:
    """Copy nested content; what a recipe cannot hold is refused with its dotted key."""
    if depth > _DEPTH:
        raise ConfigError(f"{where[:60]}...: nested deeper than {_DEPTH} levels")
    if isinstance(data, Mapping):
        return {k: _copy(v, f"{where}.{k}" if where else str(k), depth + 1)
                for k, v in data.items()}  # fmt: skip
    if isinstance(data, list | tuple):
        return [_copy(v, f"{where}.{i}", depth + 1) for i, v in enumerate(data)]
    if isinstance(data, float) and not math.isfinite(data):
        raise ConfigError(f"{where}: {data} is not allowed: give a finite number")
    if isinstance(data, int) and abs(data) > _LARGEST:
        raise ConfigError(f"{where}: a number of {len(str(data))} digits is not allowed")
    return data


def _step(place: Any, part: str, where: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, where)]
    if not isinstance(place, dict):
        raise ConfigError(f"override {where}: there is no section to set it in")
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _index(items: list[Any], part: str, where: str) -> int:
    if not items:
        raise ConfigError(f"override {where}: the list is empty; give the whole list")
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"override {where}: {part!r} is not an item from 0 to {len(items) - 1}")
    return int(part)


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check the content of a recipe; the first thing wrong is a ConfigError of one line."""
    try:
        return Recipe.model_validate(_copied(data, where))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_error(error)}") from error


def _copied(data: Mapping[str, Any], where: str) -> Any:
    try:
        return _copy(data)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _first_error(error: ValidationError) -> str:
    # An unknown key is most often a slip that also makes a needed key missing: it comes first.
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    path = [p for p in problem["loc"] if not (isinstance(p, str) and p.startswith("function-"))]
    key = ".".join(str(p) for p in path)
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, NniGconvError):  # it says itself where, if not always from the top
        section = key.rpartition(".")[0]
        top = not section or str(inner).startswith(section.partition(".")[0])
        return str(inner) if top else f"{section}.{inner}"
    if problem["type"] == "extra_forbidden":
        allowed = _fields(path[:-1])
        close = nearest(str(path[-1]), allowed, count=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown key{hint} (allowed: {', '.join(sorted(allowed))}){more}"
    if problem["type"] == "missing":
        return f"{key}: this key is needed{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return f"{message}{more}"
    given = problem.get("input")
    shown = (
        f"{given!r}" if isinstance(given, str | int | float | bool | None) else type(given).__name__
    )
    return f"{key}: {shown} is not allowed: {message[0].lower()}{message[1:]}{more}"


def _fields(path: list[Any]) -> list[str]:
    """Names of the keys that the section at `path` knows."""
    model: Any = Recipe
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        annotations = [field.annotation, *get_args(field.annotation)]
        # To Python 3.10 dict[str, float] is a type, of which nothing can be asked.
        kinds = [k for k in annotations if isinstance(k, type) and get_origin(k) is None]
        model = next((k for k in kinds if issubclass(k, BaseModel)), None)
    return list(getattr(model, "model_fields", {}))
