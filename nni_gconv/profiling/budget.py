"""Budgets such as ``{"macs": 0.5}``: what may be limited, and by which numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nni_gconv.errors import ConfigError, unknown_name

#: What a budget may limit.
MEASURES = ("macs", "params", "latency")


def parse_budget(budget: Mapping[str, Any]) -> dict[str, float]:
    """Check a budget such as ``{"macs": 0.5}``.

    A number up to 1 is a fraction of the dense model, a larger one an absolute count (latency:
    milliseconds are not comparable between machines, so a fraction only).

    Raises
    ------
    ConfigError
        Unknown measure, or a value that is not a positive number.
    """
    if not isinstance(budget, Mapping) or not budget:
        raise ConfigError(f"budget: expected a mapping such as {{macs: 0.5}}, got {budget!r}")
    parsed = {}
    for measure, value in budget.items():
        if measure not in MEASURES:
            raise ConfigError(unknown_name("measure", measure, MEASURES, "budget"))
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise ConfigError(f"budget.{measure}: {value!r} is not a positive number")
        if measure == "latency" and value > 1:
            raise ConfigError(f"budget.latency: {value!r} is not a fraction of the dense latency")
        parsed[measure] = float(value)
    return parsed
