"""The decisions a tuner takes: a search space of NNI's whose choices say what they cost.

Beside ``_type`` and ``_value`` a choice may have lists as long as ``_value``::

    "prune.options.group_config.layer1.0.conv1": {
        "_type": "choice", "_value": [1, 2, 4],
        "params": [0.033, 0.0165, 0.00825],
        "macs": [0.054, 0.027, 0.0135],
        "lost": [0.0, 0.45, 0.7]
    }

``params`` and ``macs`` are shares of the whole dense network, the first option being the dense
one; ``lost`` is how much of the layer goes, 0 to 1. NNI's own tuners pass over these lists, so one
file serves them all. ``nni-gconv search-space`` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_gconv.errors import ConfigError, unknown_name

Floats = NDArray[np.float64]
#: One option of each decision.
Choice = tuple[int, ...]

MEASURES = ("macs", "params")
COST_LISTS = (*MEASURES, "lost")


@dataclass(frozen=True)
class Decision:
    """One key of the search space.

    Attributes
    ----------
    name : str
        The key.
    values : tuple
        What a trial may be given.
    cost : ndarray of float64, shape (options,), or None
        Share of the dense network's cost; None for a key that costs nothing, such as a learning
        rate.
    lost : ndarray of float64, shape (options,), or None
        How much of the layer each option takes, 0 to 1.
    """

    name: str
    values: tuple[Any, ...]
    cost: Floats | None = None
    lost: Floats | None = None


class Options:
    """All decisions, and what they cost together.

    Parameters
    ----------
    decisions : sequence of Decision
        At least one has a cost.

    Examples
    --------
    >>> halves = {"_type": "choice", "_value": [1, 2], "macs": [0.4, 0.2]}
    >>> options = Options.from_space({"a": halves, "b": halves}, "macs")
    >>> options.parameters((1, 0)), round(options.cost((1, 0)), 3), options.range
    ({'a': 2, 'b': 1}, 0.8, (0.6, 1.0))
    >>> options.choice({"a": 2, "b": 1})
    (1, 0)
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.decisions = tuple(decisions)
        #: Number of each decision that has a cost -> cost of its options.
        self.costs = {i: d.cost for i, d in enumerate(self.decisions) if d.cost is not None}
        self.costly = tuple(self.costs)
        self._places = [
            {_key(v): i for i, v in enumerate(decision.values)} for decision in self.decisions
        ]

    @classmethod
    def from_space(cls, space: Mapping[str, Any], measure: str = "macs") -> Options:
        """Read a search space.

        Parameters
        ----------
        space : mapping
            NNI's search space, all choices.
        measure : {"macs", "params"}, default "macs"
            Which of the lists is the cost.

        Raises
        ------
        ConfigError
            A key is no choice, its lists are wrong, or no key has a cost.
        """
        if measure not in MEASURES:
            raise ConfigError(unknown_name("budget", measure, MEASURES, "classArgs.budget"))
        if not isinstance(space, Mapping) or not space:
            raise ConfigError(f"the search space must be a mapping of names, not {space!r:.60}")
        decisions = []
        for name, spec in space.items():
            where = f"search space {name!r}"
            if not isinstance(spec, Mapping) or spec.get("_type") != "choice":
                raise ConfigError(f"{where}: this tuner knows _type choice only, not {spec!r:.60}")
            values = spec.get("_value")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}: _value must be a list, not {values!r:.60}")
            if any(isinstance(v, Mapping) and "_name" in v for v in values):
                raise ConfigError(f"{where}: this tuner does not know nested choices (_name)")
            check_cost_lists(spec, where)
            decisions.append(_decision(name, spec, measure))
        if all(decision.cost is None for decision in decisions):
            raise ConfigError(
                f"search space: no key has a list {measure!r} of costs beside _value; "
                "nni-gconv search-space RECIPE.yml writes one"
            )
        return cls(decisions)

    def __len__(self) -> int:
        return len(self.decisions)

    @property
    def count(self) -> int:
        """How many different trials there are."""
        return math.prod(len(decision.values) for decision in self.decisions)

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest cost, shares of the dense network."""
        costs = self.costs.values()
        low = 1 - sum(float(c[0] - c.min()) for c in costs)
        return round(low, 12), round(1 - sum(float(c[0] - c.max()) for c in costs), 12)

    def cost(self, choice: Choice) -> float:
        """Cost of the whole network as a share of the dense one."""
        return 1 - sum(float(cost[0] - cost[choice[i]]) for i, cost in self.costs.items())

    def parameters(self, choice: Choice) -> dict[str, Any]:
        """Return what a trial is given."""
        pairs = zip(self.decisions, choice, strict=True)
        return {decision.name: decision.values[option] for decision, option in pairs}

    def choice(self, parameters: object) -> Choice | None:
        """Return the options that parameters stand for; None if they are not of this space."""
        if not isinstance(parameters, Mapping):
            return None
        found = []
        for decision, places in zip(self.decisions, self._places, strict=True):
            place = places.get(_key(parameters.get(decision.name)))
            if place is None:
                return None
            found.append(place)
        return tuple(found)


def check_cost_lists(spec: Mapping[str, Any], where: str) -> None:
    """Refuse lists of costs that are not as long as the choices, or hold no numbers from 0 to 1.

    Examples
    --------
    >>> check_cost_lists({"_type": "choice", "_value": [1, 2], "macs": [0.1]}, "search space 'a'")
    Traceback (most recent call last):
        ...
    nni_gconv.errors.ConfigError: search space 'a': macs has 1 numbers, _value 2
    """
    for key, numbers in spec.items():
        if key in ("_type", "_value"):
            continue
        if key not in COST_LISTS:
            allowed = ("_type", "_value", *COST_LISTS)
            raise ConfigError(unknown_name("key", key, allowed, where))
        if spec.get("_type") != "choice":
            raise ConfigError(f"{where}: only a choice has a list {key!r}")
        if not isinstance(numbers, list) or not all(_share(n) for n in numbers):
            raise ConfigError(f"{where}: {key} must be a list of numbers from 0 to 1")
        if len(numbers) != len(spec["_value"]):
            raise ConfigError(
                f"{where}: {key} has {len(numbers)} numbers, _value {len(spec['_value'])}"
            )


def _decision(name: str, spec: Mapping[str, Any], measure: str) -> Decision:
    values = tuple(spec["_value"])
    if measure not in spec:
        return Decision(name, values)
    cost = np.asarray(spec[measure], np.float64)
    # Without a word of what is lost: as much as is saved.
    saved = 1 - cost / cost[0] if cost[0] > 0 else np.zeros_like(cost)
    lost = np.asarray(spec["lost"], np.float64) if "lost" in spec else saved.clip(0, 1)
    return Decision(name, values, cost, lost)


def _share(number: object) -> bool:
    usable = isinstance(number, int | float) and not isinstance(number, bool)
    return usable and 0 <= number <= 1  # type: ignore[operator]


def _key(value: Any) -> str:
    # 2 and 2.0 are one value to JSON's readers, True and 1 are not.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)
