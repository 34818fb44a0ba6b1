"""Budgets such as ``{"macs": 0.5}``: what may be limited, and by which numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nni_gconv.errors import BudgetError, ConfigError, unknown_name

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


def check_met(
    budget: Mapping[str, float],
    small: Mapping[str, float],
    dense: Mapping[str, float],
    reasons: Sequence[str] = (),
) -> None:
    """Raise an error if a small network costs more than its budget allows.

    Parameters
    ----------
    budget : mapping of str to float
        From :func:`parse_budget`; latency is left out, it was measured when it was met.
    small, dense : mappings of str to float
        Counts of ``macs`` and ``params``.
    reasons : sequence of str
        What the speedup says of channels that stayed.

    Raises
    ------
    BudgetError
        Says what is left, what was asked, and why.

    Examples
    --------
    >>> check_met({"macs": 0.5}, {"macs": 60}, {"macs": 100})
    Traceback (most recent call last):
    ...
    nni_gconv.errors.BudgetError: budget.macs: 0.600 of dense is left after the speedup, not 0.500
    """
    for measure, value in budget.items():
        if measure == "latency":
            continue
        limit = value if value <= 1 else value / dense[measure]
        left = small[measure] / dense[measure]
        if left > limit + 1e-9:
            why = f" (masked channels that stayed: {'; '.join(reasons)})" if reasons else ""
            raise BudgetError(
                f"budget.{measure}: {left:.3f} of dense is left after the speedup, not {limit:.3f}"
                f"{why}"
            )
