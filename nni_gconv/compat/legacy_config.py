"""Keys of a config_list that NNI 2 had and NNI 3 still reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_logger = logging.getLogger(__name__)

_RENAMED = {
    "sparsity": "sparse_ratio",
    "sparsity_per_layer": "sparse_ratio",
    "total_sparsity": "sparse_ratio",
    "max_sparsity_per_layer": "max_sparse_ratio",
}
#: Keys of NNI 2 that say which layers an entry is about, beside those that NNI 3 has too.
LEGACY_SELECT_KEYS = ("exclude", "op_partial_names")
_SELECT = ("op_types", "op_names", "op_names_re")


def modern_config(
    model: nn.Module, config_list: Any, select: Callable[[Mapping[str, Any], str], Iterable[str]]
) -> Any:
    """Write a config_list of NNI 2 with the keys of NNI 3; others come back as they are.

    ``sparsity``, ``sparsity_per_layer`` and ``max_sparsity_per_layer`` are ratios;
    ``total_sparsity`` is one that the layers of its entry reach together; ``op_partial_names`` are
    patterns; an entry with ``exclude`` takes its layers out of all others; ``op_types: [default]``
    are all layers that can be pruned. Each is noted in the log.

    Parameters
    ----------
    model : nn.Module
        The model the names belong to.
    config_list : list of dict
        As it was given.
    select : callable
        Names of the layers that an entry selects; also told where the entry stands.

    Raises
    ------
    ConfigError
        Keys that contradict each other, or those of a quantiser.
    """
    entries = isinstance(config_list, Sequence) and not isinstance(config_list, str)
    if not entries or not all(isinstance(entry, Mapping) for entry in config_list):
        return config_list
    notes: list[str] = []
    kept: list[dict[str, Any]] = []
    excluding: list[tuple[str, dict[str, Any]]] = []
    for number, entry in enumerate(config_list):
        where = f"config_list[{number}]"
        found = _renamed(model, entry, where, notes)
        if found.pop("exclude", False):
            excluding.append((where, found))
        else:
            kept.append(found)
    if not notes:
        return config_list
    for note in notes:
        _logger.warning(note)
    excluded = [name for where, entry in excluding for name in select(_selection(entry), where)]
    for entry in kept if excluded else ():
        entry["exclude_op_names"] = [*entry.get("exclude_op_names", ()), *excluded]
    return kept


def _renamed(
    model: nn.Module, entry: Mapping[str, Any], where: str, notes: list[str]
) -> dict[str, Any]:
    if "quant_types" in entry or "quant_bits" in entry:
        raise ConfigError(f"{where}: quant_types and quant_bits are a quantiser's, not a pruner's")
    made: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in entry.items():
        name, meant = _RENAMED.get(key, key), value
        if key == "op_partial_names":
            if not isinstance(value, list | tuple):
                raise ConfigError(f"{where}.{key}: expected a list of strings, got {value!r}")
            name, meant = "op_names_re", [f".*{part}.*" for part in value]
        elif key == "op_types" and isinstance(value, list | tuple) and "default" in value:
            meant = [kind for kind in value if kind != "default"]
            meant += [kind for kind in _default_types(model) if kind not in meant]
            notes.append(f"{where}: op_types 'default' of NNI 2 is read as {', '.join(meant)}")
        if name in made:
            raise ConfigError(f"{where}: {origin[name]} and {key} say the same; give {name} alone")
        made[name], origin[name] = meant, key
        if key == "exclude":
            notes.append(f"{where}: exclude of NNI 2 is read as exclude_* of the other entries")
        elif name != key:
            notes.append(f"{where}: {key} of NNI 2 is read as {name}")
    if "total_sparsity" in entry:
        made.setdefault("global_group_id", f"total_sparsity of {where}")
    return made


def _default_types(model: nn.Module) -> list[str]:
    """Name the types of layers in a model that can be pruned, subclasses by their own names."""
    from torch import nn

    layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    return list(dict.fromkeys(type(layer).__name__ for layer in layers))


def _selection(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in _SELECT}
