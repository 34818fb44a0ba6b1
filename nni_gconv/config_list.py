"""NNI's config_list, read strictly: every pattern matches, every key and value is known.

NNI ignores a pattern that matches nothing and stops with a schema traceback at a wrong value; here
each is one line that names the entry, the key, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from nni_gconv.checked import Checked, checked
from nni_gconv.compat import modern_config
from nni_gconv.errors import ConfigError, check_layers, check_model, nearest, unknown_name

SELECT_KEYS = (
    "op_types",
    "op_names",
    "op_names_re",
    "exclude_op_types",
    "exclude_op_names",
    "exclude_op_names_re",
)
#: Keys of NNI that say how a layer is pruned.
SETTING_KEYS = (
    "sparse_ratio",
    "sparse_threshold",
    "min_sparse_ratio",
    "max_sparse_ratio",
    "global_group_id",
    "dependency_group_id",
    "internal_metric_block",
    "granularity",
    "apply_method",
    "align",
)
#: Keys of ours for pruners that remove channels.
CHANNEL_KEYS = ("min_channels", "round_to", "couple")
_OTHER_KEYS = ("target_names", "target_settings")
#: A bias follows its weight: it is masked with its channel whether it is named or not.
_TARGETS = ("weight", "bias")
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerConfig:
    """What the config_list asks of one layer; see NNI's documentation for the keys it shares.

    Attributes
    ----------
    sparse_ratio, sparse_threshold : float or None
        Share of the channels to remove, or the score below which they go.
    min_sparse_ratio, max_sparse_ratio : float
        Bounds of the share, kept by ratios, global ranking and budgets alike.
    global_group_id : int, str or None
        Layers of one group are ranked together.
    dependency_group_id : int, str or None
        Layers of one group lose the same channels.
    internal_metric_block : int or None
        So many equal blocks lose equally many channels.
    min_channels : int
        Never keep fewer channels.
    round_to : int or "auto"
        Keep a multiple of this wherever channels are removed; ``auto`` until it is measured.
    couple : bool
        Layers whose channels are tied to the layer's are selected with it.
    """

    sparse_ratio: float | None = None
    sparse_threshold: float | None = None
    min_sparse_ratio: float = 0.0
    max_sparse_ratio: float = 1.0
    global_group_id: int | str | None = None
    dependency_group_id: int | str | None = None
    internal_metric_block: int | None = None
    min_channels: int = 1
    round_to: int | Literal["auto"] = 1
    couple: bool = False
    apply_method: str = "mul"
    align: str | None = None


def resolve(
    model: nn.Module, config_list: Sequence[Mapping[str, Any]], *, extra_keys: Collection[str] = ()
) -> tuple[dict[str, LayerConfig], frozenset[str]]:
    """Find what each layer is asked, with NNI's rule of selection.

    A layer is selected when ``op_names`` or ``op_names_re`` match it (if given) and its type, or
    one it derives from, is in ``op_types`` (if given) and no ``exclude_*`` matches. Later entries
    override earlier ones.

    Parameters
    ----------
    model : nn.Module
        The model the names belong to.
    config_list : sequence of mapping
        NNI's config_list.
    extra_keys : collection of str
        Keys a method adds.

    Returns
    -------
    layers : dict of str to LayerConfig
        In the order of the model, each layer under the first of its names.
    excluded : frozenset of str
        Layers that some entry excludes and none selects.

    Raises
    ------
    ConfigError
        A wrong key, value or pattern; the message says which entry.
    """
    check_layers(model)
    config_list = modern(model, config_list)
    if isinstance(config_list, Mapping | str) or not isinstance(config_list, Sequence):
        raise ConfigError(
            f"config_list: expected a list of entries, got {type(config_list).__name__}"
        )
    if not config_list:
        raise ConfigError("config_list: the list is empty, nothing would be pruned")
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    found: dict[str, LayerConfig] = {}
    excluded: set[str] = set()
    for number, entry in enumerate(config_list):
        where = f"config_list[{number}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {entry!r}")
        _check_keys(entry, where, extra_keys)
        selected, left_out = _select(modules, entry, where)
        excluded |= left_out
        settings = _settings(entry, where)
        for name in selected:
            if not isinstance(modules[name], (*_LAYERS, *_TRANSPOSED)):
                raise ConfigError(
                    f"{where}: {name} is a {type(modules[name]).__name__}; channels can be pruned "
                    "in Conv1d/2d/3d, ConvTranspose1d/2d/3d and Linear"
                )
            found[name] = replace(found.get(name, LayerConfig()), **_overriding(settings))
    _check_groups(found)
    return {n: found[n] for n in modules if n in found}, frozenset(excluded - set(found))


def modern(model: nn.Module, config_list: Any) -> Any:
    """Write the keys of NNI 2 in a config_list as those of NNI 3, see `compat.modern_config`."""
    check_model(model)
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}

    def select(entry: Mapping[str, Any], where: str) -> list[str]:
        _check_keys(entry, where, ())
        return _select(modules, entry, where)[0]

    return modern_config(model, config_list, select)


def _check_groups(layers: Mapping[str, LayerConfig]) -> None:
    """Refuse a global group whose layers ask for different shares: there is one share to rank."""
    first: dict[int | str, tuple[str, float]] = {}
    for name, layer in layers.items():
        group, ratio = layer.global_group_id, layer.sparse_ratio
        if group is None or ratio is None:
            continue
        leader, expected = first.setdefault(group, (name, ratio))
        if ratio != expected:
            raise ConfigError(
                f"config_list: global_group_id {group!r}: {name} has sparse_ratio {ratio}, "
                f"{leader} has {expected}; layers of one group need the same"
            )


def _check_keys(entry: Mapping[str, Any], where: str, extra_keys: Collection[str]) -> None:
    allowed = (*SELECT_KEYS, *SETTING_KEYS, *CHANNEL_KEYS, *_OTHER_KEYS, *extra_keys)
    for key in entry:
        if key not in allowed:
            raise ConfigError(unknown_name("key", key, allowed, where))
    for key in SELECT_KEYS:
        value = entry.get(key, [])
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{where}.{key}: expected a list of strings, got {value!r}")
    if not any(entry.get(key) for key in SELECT_KEYS[:3]):
        raise ConfigError(f"{where}: one of op_types, op_names, op_names_re is needed")


def _select(
    modules: Mapping[str, nn.Module], entry: Mapping[str, Any], where: str
) -> tuple[list[str], set[str]]:
    types = {kind for m in modules.values() for kind in _kinds(m)}
    names: set[str] = set()
    for pattern in entry.get("op_names", ()):
        _must_match(pattern, {pattern} & set(modules), modules, f"{where}.op_names", "module")
        names.add(pattern)
    for key in ("op_names_re", "exclude_op_names_re"):
        for pattern in entry.get(key, ()):
            hits = _matching(modules, pattern, f"{where}.{key}")
            _must_match(pattern, hits, modules, f"{where}.{key}", "module")
            names |= hits if key == "op_names_re" else set()
    for key in ("op_types", "exclude_op_types"):
        for kind in entry.get(key, ()):
            _must_match(kind, {kind} & types, types, f"{where}.{key}", "module type")
    for name in entry.get("exclude_op_names", ()):
        _must_match(name, {name} & set(modules), modules, f"{where}.exclude_op_names", "module")
    wanted = set(entry.get("op_types", ()))
    by_type = {n for n, m in modules.items() if wanted & _kinds(m)}
    if entry.get("op_names") or entry.get("op_names_re"):
        chosen = names & by_type if wanted else names
    else:
        chosen = by_type
    # A layer that has several names is one layer, whichever of them is given.
    first = {id(m): n for n, m in reversed(list(modules.items()))}
    chosen = {first[id(modules[n])] for n in chosen}
    out = {first[id(modules[n])] for n in _excluded(modules, entry, where)}
    # What is tied to a layer may be of types that the entry does not select.
    out = out if entry.get("couple") else chosen & out
    chosen -= out
    if not chosen:
        raise ConfigError(f"{where}: its patterns together select no module")
    return [n for n in modules if n in chosen], out


def _excluded(modules: Mapping[str, nn.Module], entry: Mapping[str, Any], where: str) -> set[str]:
    out = set(entry.get("exclude_op_names", ()))
    for pattern in entry.get("exclude_op_names_re", ()):
        out |= _matching(modules, pattern, f"{where}.exclude_op_names_re")
    kinds = set(entry.get("exclude_op_types", ()))
    return out | {n for n, m in modules.items() if kinds & _kinds(m)}


def _kinds(module: nn.Module) -> set[str]:
    """Names of a module's class and of the layers it derives from, as ``Conv2d`` of Conv2dSame."""
    return {
        kind.__name__
        for kind in type(module).__mro__
        if kind is type(module) or issubclass(kind, (*_LAYERS, *_TRANSPOSED))
    }


def _matching(modules: Mapping[str, nn.Module], pattern: str, where: str) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r} is not a regular expression ({error})") from error
    return {name for name in modules if compiled.match(name)}


def _must_match(
    pattern: str, hits: set[str], allowed: Collection[str], where: str, kind: str
) -> None:
    if hits:
        return
    close = nearest(pattern, allowed)
    if not close and pattern.startswith("module."):
        close = nearest(pattern.removeprefix("module."), allowed)
    hint = f"; nearest: {', '.join(close)}" if close else ""
    raise ConfigError(f"{where}: {pattern!r} matches no {kind} of the model{hint}")


def _settings(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {k: entry[k] for k in (*SETTING_KEYS, *CHANNEL_KEYS) if entry.get(k) is not None}
    _check_targets(entry.get("target_names"), f"{where}.target_names")
    per_target = entry.get("target_settings") or {}
    if not isinstance(per_target, Mapping):
        raise ConfigError(f"{where}.target_settings: expected a mapping, got {per_target!r}")
    for target, setting in per_target.items():
        here = f"{where}.target_settings"
        if target not in _TARGETS:
            raise ConfigError(unknown_name("target", target, _TARGETS, here))
        if not isinstance(setting, Mapping):
            raise ConfigError(f"{here}.{target}: expected a mapping, got {setting!r}")
        for key in setting:
            if key not in SETTING_KEYS:
                raise ConfigError(unknown_name("key", key, SETTING_KEYS, f"{here}.{target}"))
    values.update({k: v for k, v in per_target.get("weight", {}).items() if v is not None})
    if "align" in values:
        values["align"] = _align(values["align"], f"{where}.align")
    return _checked_values(values, where)


def _check_targets(targets: Any, where: str) -> None:
    if targets is None:
        return
    if not isinstance(targets, list | tuple) or not all(isinstance(t, str) for t in targets):
        raise ConfigError(f"{where}: expected a list of strings, got {targets!r}")
    for target in targets:
        if target not in _TARGETS:
            raise ConfigError(
                unknown_name("target", target, _TARGETS, where)
                + ": whole channels are pruned by their weights"
            )
    if "weight" not in targets:
        raise ConfigError(f"{where}: {targets!r} lacks 'weight', whose rows are pruned")


def _overriding(settings: dict[str, Any]) -> dict[str, Any]:
    """A later ratio replaces an earlier threshold, and the other way round."""
    if "sparse_ratio" in settings:
        return {"sparse_threshold": None, **settings}
    if "sparse_threshold" in settings:
        return {"sparse_ratio": None, **settings}
    return settings


def _align(value: Any, where: str) -> str:
    known = isinstance(value, Mapping) and isinstance(value.get("module_name"), str)
    if not known or value.get("dims") not in ([0], (0,)):
        raise ConfigError(
            f"{where}: expected {{module_name, target_name, dims: [0]}}, got {value!r}"
        )
    return str(value["module_name"])


class _Values(Checked):
    """What an entry may say of its layers; NNI's names, and ours for whole channels."""

    sparse_ratio: float | None = Field(None, ge=0, le=1)
    sparse_threshold: float | None = Field(None, ge=0)
    min_sparse_ratio: float | None = Field(None, ge=0, le=1)
    max_sparse_ratio: float | None = Field(None, ge=0, le=1)
    global_group_id: int | str | None = None
    dependency_group_id: int | str | None = None
    internal_metric_block: int | None = Field(None, ge=1)
    granularity: Literal["default", "out_channel"] | None = None
    apply_method: Literal["mul", "bypass"] | None = None
    align: str | None = None
    min_channels: int | None = Field(None, ge=1)
    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    couple: bool | None = None


def _checked_values(given: dict[str, Any], where: str) -> dict[str, Any]:
    values = checked(_Values, given, where).model_dump(exclude_none=True)
    if "sparse_ratio" in values and "sparse_threshold" in values:
        raise ConfigError(f"{where}: sparse_ratio and sparse_threshold exclude each other")
    low, high = values.get("min_sparse_ratio", 0.0), values.get("max_sparse_ratio", 1.0)
    if low > high:
        raise ConfigError(f"{where}: min_sparse_ratio {low} is above max_sparse_ratio {high}")
    values.pop("granularity", None)
    return values


def nni_entries(layers: Mapping[str, LayerConfig]) -> list[dict[str, Any]]:
    """Write one entry of NNI's own schema per layer, without keys that only we know."""
    entries = []
    for name, layer in layers.items():
        entry: dict[str, Any] = {"op_names": [name], "apply_method": layer.apply_method}
        for key in ("sparse_ratio", "sparse_threshold", "global_group_id", "dependency_group_id"):
            if getattr(layer, key) is not None:
                entry[key] = getattr(layer, key)
        if layer.max_sparse_ratio < 1:
            entry["max_sparse_ratio"] = max(layer.max_sparse_ratio, 1e-9)
        if layer.min_sparse_ratio > 0:
            entry["min_sparse_ratio"] = min(layer.min_sparse_ratio, 1 - 1e-9)
        if layer.internal_metric_block is not None:
            entry["internal_metric_block"] = layer.internal_metric_block
        entries.append(entry)
    return entries


def prunable_layers(model: nn.Module) -> list[str]:
    """Name the layers whose channels can be pruned: convolutions and linear layers.

    Examples
    --------
    >>> prunable_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 2)))
    ['0', '2']
    """
    kinds = (*_LAYERS, *_TRANSPOSED)
    return [name for name, module in model.named_modules() if name and isinstance(module, kinds)]
