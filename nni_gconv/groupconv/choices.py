"""Which layers can become group convolutions, and with how many groups.

G groups of one size need a G that divides the filters F and the input channels C.

>>> group_choices(64, 48), group_choices(64, 48, min_factor=8)
((1, 2, 4, 8, 16), (1, 2, 4))
"""

from __future__ import annotations

import math

from torch import nn

from nni_gconv.errors import ConfigError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: A stem of 96 filters could be split by colours; nobody wants that.
_COLOURS = 3


def group_choices(
    filters: int,
    channels: int,
    *,
    max_groups: int = 64,
    min_factor: int = 1,
    depthwise: bool = False,
) -> tuple[int, ...]:
    """Group counts that a convolution of F filters and C input channels allows.

    Parameters
    ----------
    filters, channels : int
        F and C.
    max_groups : int, default 64
        No more groups than this.
    min_factor : int, default 1
        Each group keeps at least so many filters and so many input channels.
    depthwise : bool, default False
        Allow G = F = C, one channel a group.

    Returns
    -------
    tuple of int
        Common divisors of F and C, ascending. The first is 1, the dense layer, which no limit
        takes away.

    Raises
    ------
    ConfigError
        A number that is not a whole number from 1.

    Examples
    --------
    >>> group_choices(16, 16), group_choices(16, 16, depthwise=True), group_choices(64, 3)
    ((1, 2, 4, 8), (1, 2, 4, 8, 16), (1,))
    """
    sizes = {"filters": filters, "channels": channels}
    for name, value in {**sizes, "max_groups": max_groups, "min_factor": min_factor}.items():
        check_count(value, name)
    common = math.gcd(filters, channels)
    most = min(max_groups, min(filters, channels) // min_factor)
    if filters == channels and not depthwise:
        most = min(most, filters - 1)
    return (1, *(g for g in range(2, most + 1) if common % g == 0))


def groups_for_max_size(filters: int, channels: int, max_group_size: int) -> int | None:
    """Group count whose groups have `max_group_size` channels on the wider side.

    The paper's "maximum channels per group": ``G = max(F, C) / max_group_size``.

    Parameters
    ----------
    filters, channels : int
        F and C.
    max_group_size : int
        Channels a group on the wider side.

    Returns
    -------
    int or None
        1 where the layer is no wider than that; None where G is no whole number or does not
        divide both F and C.

    Raises
    ------
    ConfigError
        A number that is not a whole number from 1.

    Examples
    --------
    >>> groups_for_max_size(16, 32, 8), groups_for_max_size(16, 16, 32)
    (4, 1)
    >>> groups_for_max_size(16, 24, 4) is None  # 6 groups do not divide 16 filters
    True
    """
    sizes = {"filters": filters, "channels": channels, "max_group_size": max_group_size}
    for name, value in sizes.items():
        check_count(value, name)
    widest = max(filters, channels)
    if widest <= max_group_size:
        return 1
    groups, rest = divmod(widest, max_group_size)
    return None if rest or math.gcd(filters, channels) % groups else groups


def not_groupable(module: nn.Module, *, further: bool = False) -> str | None:
    """Why a layer stays as it is, or None where it can be split in two groups or more.

    Parameters
    ----------
    module : nn.Module
        The layer.
    further : bool, default False
        Groups that it has already may be split further, each by itself.

    Examples
    --------
    >>> not_groupable(nn.Conv2d(64, 64, 3)) is None
    True
    >>> not_groupable(nn.Conv2d(48, 35, 3))
    'its 35 filters and 48 input channels have no common divisor but 1'
    """
    if isinstance(module, _TRANSPOSED):
        return "a transposed convolution is not converted"
    if not isinstance(module, _CONVS):
        return f"a {type(module).__name__} is no convolution"
    if module.groups > 1:
        return _not_further(module, further)
    filters, channels = module.out_channels, module.in_channels
    if channels == _COLOURS:
        return "its 3 input channels are the colours of an image"
    if math.gcd(filters, channels) > 1:
        return None
    return f"its {filters} filters and {channels} input channels have no common divisor but 1"


def _not_further(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, further: bool) -> str | None:
    """Why a layer that has groups keeps them as they are."""
    groups = module.groups
    filters, channels = module.out_channels // groups, module.in_channels // groups
    if channels == 1:
        return "it is depthwise already"
    if not further:
        return f"it has {groups} groups already (GroupConvPruner can split them)"
    if math.gcd(filters, channels) > 1:
        return None
    return (
        f"it has {groups} groups already, of {filters} filters and {channels} input channels each: "
        "no common divisor but 1"
    )


def groups_of(layer: nn.Module) -> int:
    """Groups that a layer has now: 1 where it has none.

    Examples
    --------
    >>> groups_of(nn.Conv2d(8, 8, 3, groups=4)), groups_of(nn.Linear(2, 2))
    (4, 1)
    """
    return int(getattr(layer, "groups", 1))


def check_count(value: object, where: str) -> int:
    """Return `value` if it is a whole number from 1, else raise a ConfigError.

    Examples
    --------
    >>> check_count(4, "num_groups")
    4
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {value!r} is not allowed (a whole number from 1)")
    return value
