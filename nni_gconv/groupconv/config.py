"""Group counts of a network's layers as a JSON file, in GConv Prune's format.

::

    {"module.layer1.0.conv1": {"G": 4, "F": 64, "C": 64}}

G is the number of groups, F and C the filters and input channels of the layer, of all its groups
together. A layer that has groups already is split further by a multiple of them; their number
itself leaves it as it is, as 1 does. The prefix ``module.`` (that of a model in DataParallel) may
stand or not; other keys of an entry are passed over. A layer that the model lacks is an error,
unless its entry asks for nothing (G is 1) or is the original's own (it has an ``id``): that
silently left such a layer dense, and its published files have such entries. Then it is a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nni_gconv.errors import ConfigError, nearest
from nni_gconv.files import write_json
from nni_gconv.groupconv.choices import check_count, groups_of, not_groupable

_logger = logging.getLogger(__name__)

_PREFIX = "module."


def read_group_config(path: str | Path, model: nn.Module) -> dict[str, int]:
    """Read the number of groups of each layer.

    Parameters
    ----------
    path : str or Path
        The JSON file.
    model : nn.Module
        The dense model its names and sizes belong to.

    Returns
    -------
    dict of str to int
        Name of the layer in `model` -> G, in the order of the file; 1, or as many groups as a layer
        has, leaves it as it is.

    Raises
    ------
    ConfigError
        The file is missing or no such JSON; a layer is unknown, named twice or cannot be grouped;
        F or C are not the layer's; G does not divide them.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.json").write_text('{"module.0": {"G": 2, "F": 8, "C": 4, "id": 1}}')
    >>> read_group_config(folder / "a.json", nn.Sequential(nn.Conv2d(4, 8, 3)))
    {'0': 2}
    """
    path = Path(path).expanduser()
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from None
    if not isinstance(pairs, _Pairs):
        raise ConfigError(f"{path}: expected an object of layers, {_example()}")
    layers = dict(model.named_modules())
    groups: dict[str, int] = {}
    for key, entry in pairs:
        where = f"{path}: {key!r}"
        try:
            name = _name(key, layers, where)
        except ConfigError as error:
            if not _is_dead(entry):
                raise
            _logger.warning("%s; passed over", error)
            continue
        if name in groups:
            raise ConfigError(f"{where}: the layer {name} has an entry already")
        if not isinstance(entry, _Pairs) or "G" not in dict(entry):
            raise ConfigError(f"{where}: expected {_example()}")
        groups[name] = _checked(dict(entry), layers[name], where)
    return groups


def write_group_config(path: str | Path, groups: Mapping[str, int], model: nn.Module) -> Path:
    """Write the number of groups of each layer, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The JSON file; its folder is made.
    groups : mapping of str to int
        Name of the layer in `model` -> G.
    model : nn.Module
        The dense model.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        A layer is unknown or does not allow its G, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> model = nn.Sequential(nn.Conv2d(4, 8, 3))
    >>> path = write_group_config(Path(tempfile.mkdtemp()) / "a.json", {"0": 2}, model)
    >>> read_group_config(path, model)
    {'0': 2}
    """
    layers = dict(model.named_modules())
    checked = check_groups(groups, model)
    return write_entries(path, {n: (g, *_sizes(layers[n])) for n, g in checked.items()})


def write_entries(path: str | Path, entries: Mapping[str, tuple[int, int, int]]) -> Path:
    """Write layer -> (G, F, C) as it is, for callers that have checked it; else as above."""
    path = Path(path).expanduser()
    data = {
        _PREFIX + name.removeprefix(_PREFIX): dict(zip("GFC", entry, strict=True))
        for name, entry in entries.items()
    }
    try:
        write_json(path, data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def check_groups(
    groups: Mapping[str, Any], model: nn.Module, where: str = "groups"
) -> dict[str, int]:
    """Check that a model has the layers of a mapping and that they allow their group counts.

    Parameters
    ----------
    groups : mapping of str to int
        Name of the layer, with or without ``module.`` -> G. A name may be taken apart at its dots,
        as dotted keys of a recipe do: ``{"layer1": {"0": {"conv1": 2}}}``.
    model : nn.Module
        The dense model.
    where : str, default "groups"
        What an error message begins with.

    Returns
    -------
    dict of str to int
        Name of the layer in `model` -> G.

    Raises
    ------
    ConfigError
        A layer is unknown or cannot be grouped, or G does not divide its filters and channels.

    Examples
    --------
    >>> check_groups({"module.0": 2}, nn.Sequential(nn.Conv2d(4, 8, 3)))
    {'0': 2}
    """
    if not isinstance(groups, Mapping):
        raise ConfigError(f"{where}: layer -> number of groups, not a {type(groups).__name__}")
    layers = dict(model.named_modules())
    found: dict[str, int] = {}
    for key, count in _joined(groups):
        here = f"{where}: {key!r}"
        if not isinstance(key, str):
            raise ConfigError(f"{here}: expected the name of a layer")
        name = _name(key, layers, here)
        if name in found:
            raise ConfigError(f"{here}: the layer {name} has an entry already")
        found[name] = _checked({"G": count}, layers[name], here)
    return found


def _joined(groups: Mapping[Any, Any], outer: Any = None) -> Iterator[tuple[Any, Any]]:
    """Join the names of nested mappings by dots."""
    for key, value in groups.items():
        name = key if outer is None else f"{outer}.{key}"
        if isinstance(value, Mapping):
            yield from _joined(value, name)
        else:
            yield name, value


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as it was written: a key that stands twice is seen."""


def _example() -> str:
    return '{"module.layer1.0.conv1": {"G": 4, "F": 64, "C": 64}, ...}'


def _name(key: str, layers: Mapping[str, nn.Module], where: str) -> str:
    for name in (key, key.removeprefix(_PREFIX), _PREFIX + key):
        if name and name in layers:
            return name
    bare = {name.removeprefix(_PREFIX): name for name in layers if _is_conv(layers[name])}
    close = nearest(key.removeprefix(_PREFIX), bare, count=1)
    hint = f"; did you mean {bare[close[0]]!r}?" if close else ""
    raise ConfigError(f"{where}: the model has no such layer{hint}")


def _is_dead(entry: Any) -> bool:
    """Tell an entry whose layer may be missing: it asks for nothing, or is the original's."""
    asked = dict(entry) if isinstance(entry, _Pairs) else {}
    return asked.get("G") == 1 or {"G", "F", "C", "id"} <= set(asked)


def _is_conv(module: nn.Module) -> bool:
    return hasattr(module, "out_channels") and hasattr(module, "in_channels")


def _sizes(module: nn.Module) -> tuple[int, int]:
    return int(module.out_channels), int(module.in_channels)  # type: ignore[arg-type]


def _checked(entry: Mapping[str, Any], module: nn.Module, where: str) -> int:
    """Return G if the layer is the one the entry means and allows so many groups."""
    count = check_count(entry["G"], f"{where}: G")
    if not _is_conv(module):
        raise ConfigError(f"{where}: cannot be grouped, {not_groupable(module)}")
    filters, channels = _sizes(module)
    for key, size, what in (("F", filters, "filters"), ("C", channels, "input channels")):
        if key in entry and check_count(entry[key], f"{where}: {key}") != size:
            raise ConfigError(f"{where}: {key} is {entry[key]}, but the layer has {size} {what}")
    had = groups_of(module)
    if count in (1, had):
        return count
    if (reason := not_groupable(module, further=True)) is not None:
        raise ConfigError(f"{where}: {count} groups are not possible: {reason}")
    if filters % count or channels % count:
        raise ConfigError(
            f"{where}: {count} groups do not divide {filters} filters and {channels} input channels"
        )
    if count % had:
        raise ConfigError(
            f"{where}: {count} is no multiple of the {had} groups that it has already"
        )
    return count
