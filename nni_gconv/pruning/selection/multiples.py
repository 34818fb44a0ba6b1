"""``round_to: auto``: the multiples of channels that are quickest here, by timing each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from nni_gconv.config_list import LayerConfig
from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import conv_like
from nni_gconv.groupconv.forms import FormTimer, Unit, find_units

#: Vector widths of CPUs and GPUs in float32, and twice the widest.
MULTIPLES = (8, 16, 32)
#: A coarser multiple has to be so much quicker: it leaves less choice of channels.
_WORTH = 0.97


def measured_multiples(
    model: nn.Module, dummy_input: Any, layers: Mapping[str, LayerConfig]
) -> dict[str, LayerConfig]:
    """Put a number in place of every ``round_to: auto``.

    A convolution is timed, on its own input and in its quickest form, at widths near half of its
    own that are multiples of 8, of 16 and of 32 and of no more; the multiple with the least time a
    channel is taken. Layers that are no dense two-dimensional convolution, or have fewer than 16
    channels, keep any number.

    Parameters
    ----------
    model, dummy_input
        What is timed, on the device and with the batch that it has.
    layers : mapping of str to LayerConfig
        Of :func:`nni_gconv.config_list.resolve`.

    Raises
    ------
    ConfigError
        There is no `dummy_input` to time anything on.
    """
    wanted = [name for name, layer in layers.items() if layer.round_to == "auto"]
    if not wanted:
        return dict(layers)
    if dummy_input is None:
        raise ConfigError("round_to: auto: needs dummy_input= to time the layers on")
    modules = dict(model.named_modules(remove_duplicate=False))
    units = {unit.module: unit for unit in find_units(model, dummy_input)}
    timer = FormTimer()
    found = {
        name: _quickest(units[modules[name]], timer) if modules[name] in units else 1
        for name in wanted
    }
    return {
        name: replace(layer, round_to=found[name]) if name in found else layer
        for name, layer in layers.items()
    }


def _quickest(unit: Unit, timer: FormTimer) -> int:
    """Return the multiple with the least time a channel."""
    layer: Any = unit.module
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return 1
    widths = near_half(layer.out_channels)
    if not widths:
        return 1
    raced = timer.race(
        [conv_like(layer, out_channels=width) for width in widths.values()], unit.shape
    )
    costs = {
        multiple: rows[0].milliseconds / width
        for (multiple, width), rows in zip(widths.items(), raced, strict=True)
    }
    return least(costs)


def near_half(channels: int) -> dict[int, int]:
    """Return a width of about half a layer's for each multiple, a multiple of this and no more.

    Examples
    --------
    >>> near_half(256), near_half(64), near_half(12)
    ({8: 136, 16: 144, 32: 160}, {8: 40, 16: 48, 32: 32}, {})
    """
    widths = {}
    for multiple in MULTIPLES:
        if 2 * multiple <= channels:
            # Odd times the multiple: an even one is as good as the next multiple is.
            times = math.ceil(channels / 2 / multiple) // 2 * 2 + 1
            width = multiple * times
            widths[multiple] = width if width < channels else width - 2 * multiple
    return widths


def least(costs: Mapping[int, float]) -> int:
    """Return the multiple of least cost; a coarser one only where it is worth it.

    Examples
    --------
    >>> least({8: 1.0, 16: 0.98}), least({8: 1.0, 16: 0.9, 32: 0.89})
    (8, 16)
    """
    best = min(costs)
    for multiple in sorted(costs):
        if costs[multiple] < _WORTH * costs[best]:
            best = multiple
    return best
