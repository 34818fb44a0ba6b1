"""What a config_list asks of group convolutions: ``num_groups`` and ``max_group_size``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nni_gconv.config_list import CHANNEL_KEYS, SETTING_KEYS, modern, resolve
from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.choices import check_count, not_groupable

#: Keys of ours for methods that make group convolutions.
GROUP_KEYS = ("num_groups", "max_group_size")


@dataclass(frozen=True)
class GroupRequest:
    """What a layer is asked; at most one of the two is given.

    Attributes
    ----------
    num_groups : int or None
        G itself.
    max_group_size : int or None
        Most channels of a group, on the wider side of the layer.
    """

    num_groups: int | None = None
    max_group_size: int | None = None


def group_requests(
    model: nn.Module, config_list: Sequence[Mapping[str, Any]], *, further: bool = False
) -> tuple[dict[str, GroupRequest], dict[str, str]]:
    """Find the layers that a config_list selects for grouping, and what it asks of them.

    Selection is that of :func:`nni_gconv.config_list.resolve`; later entries override
    earlier ones for the layers both select.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    config_list : sequence of mapping
        NNI's config_list, with ``num_groups`` or ``max_group_size`` beside NNI's keys.
    further : bool, default False
        Layers that have groups already can be grouped too.

    Returns
    -------
    requests : dict of str to GroupRequest
        Layers that can be grouped, in the order of the model.
    skipped : dict of str to str
        Selected layers that cannot be grouped, each with the reason.

    Raises
    ------
    ConfigError
        A wrong key, value or pattern, or a key that has no meaning for groups; the message says
        which entry.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> requests, skipped = group_requests(net, [{"op_types": ["Conv2d"], "num_groups": 2}])
    >>> requests
    {'1': GroupRequest(num_groups=2, max_group_size=None)}
    >>> skipped
    {'0': 'its 3 input channels are the colours of an image'}
    """
    config_list = modern(model, config_list)
    selected, _ = resolve(model, config_list, extra_keys=GROUP_KEYS)
    found = dict.fromkeys(selected, GroupRequest())
    for number, entry in enumerate(config_list):
        request = _request(entry, f"config_list[{number}]")
        if request is not None:
            found.update(dict.fromkeys(resolve(model, [entry], extra_keys=GROUP_KEYS)[0], request))
    layers = dict(model.named_modules(remove_duplicate=False))
    reasons = {name: not_groupable(layers[name], further=further) for name in found}
    requests = {name: found[name] for name, reason in reasons.items() if reason is None}
    return requests, {name: reason for name, reason in reasons.items() if reason is not None}


def _request(entry: Mapping[str, Any], where: str) -> GroupRequest | None:
    for key in (*SETTING_KEYS, *CHANNEL_KEYS, "target_settings"):
        if key in entry and key != "apply_method":
            raise ConfigError(
                f"{where}.{key}: has no meaning for group convolutions "
                f"(allowed beside the selection: {', '.join(GROUP_KEYS)})"
            )
    given = {k: check_count(entry[k], f"{where}.{k}") for k in GROUP_KEYS if k in entry}
    if len(given) > 1:
        raise ConfigError(f"{where}: {' and '.join(GROUP_KEYS)} exclude each other")
    return GroupRequest(**given) if given else None
