"""From what is asked of layers to group counts that what is alive of them allows."""

from __future__ import annotations

from collections.abc import Mapping

from nni_gconv.errors import ConfigError
from nni_gconv.groups.choices import groups_for_max_size
from nni_gconv.pruning.group_requests import GroupRequest
from nni_gconv.pruning.group_sides import LiveLayer

__all__ = ["fitting_counts", "requested_counts"]


def requested_counts(
    layers: Mapping[str, LiveLayer], requests: Mapping[str, GroupRequest]
) -> tuple[dict[str, int], dict[str, str]]:
    """Turn ``num_groups`` and ``max_group_size`` into G.

    Returns
    -------
    counts : dict of str to int
        Layer -> G.
    skipped : dict of str to str
        Layers without one, each with the reason.

    Raises
    ------
    ConfigError
        A layer is asked neither.
    """
    counts: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for name, request in requests.items():
        size = request.max_group_size
        if request.num_groups is not None:
            counts[name] = request.num_groups
            continue
        if size is None:
            raise ConfigError(
                f"config_list: {name} has neither num_groups nor max_group_size, and there is no "
                "budget or group_config"
            )
        filters, channels = layers[name].alive
        count = groups_for_max_size(filters, channels, size)
        if count is None:
            skipped[name] = (
                f"groups of {size} do not divide {filters} filters and {channels} input channels"
            )
        elif count == 1:
            skipped[name] = f"it is no wider than {size} channels"
        else:
            counts[name] = count
    return counts, skipped


def fitting_counts(
    layers: Mapping[str, LiveLayer], counts: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, str]]:
    """Keep the counts of more than one group that divide what is alive of their layer.

    Returns
    -------
    counts : dict of str to int
        In the order in which the layers run.
    skipped : dict of str to str
        Layers that stay dense although more than one group is asked, each with the reason.
    """
    skipped: dict[str, str] = {}
    for name, count in counts.items():
        if count == 1:
            continue
        if name not in layers:
            skipped[name] = "the config_list does not select it"
        elif any(size % count for size in layers[name].alive):
            filters, channels = layers[name].alive
            skipped[name] = (
                f"{count} groups do not divide {filters} filters and {channels} input channels"
            )
    fitting = {n: counts[n] for n in layers if counts.get(n, 1) > 1 and n not in skipped}
    return fitting, skipped
