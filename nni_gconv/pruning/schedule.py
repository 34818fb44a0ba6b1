"""When masks are made during training, and what share of the goal they reach: no model, no NNI.

Masks are made at the borders of epochs: before the first (border 0), between two, after the last.

==============  ==============================================================================
``one-shot``    After the training, once.
``constant``    Before it, and again every ``every`` epochs until its end: the whole goal from the
                start, while the choice of channels may change (a soft method).
``iterative``   ``rounds`` equal rounds: prune a further equal share, then fine-tune.
``linear``      A ramp from ``initial`` at epoch ``begin`` to the goal at epoch ``end``.
``cubic``       The same, steep first: ``1 - (1 - initial) * (1 - t)^3``. (Zhu and Gupta, "To
                prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878; NNI's AGP.)
==============  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nni_gconv.errors import ConfigError, unknown_name

#: Name -> the keys that may stand beside it.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "one-shot": (),
    "constant": ("every",),
    "iterative": ("rounds",),
    "linear": ("begin", "end", "every", "initial"),
    "cubic": ("begin", "end", "every", "initial"),
}
_ALIASES = {"agp": "cubic"}
#: Share of the training after which a ramp without an ``end`` has reached its goal.
_RAMP = 0.75


@dataclass(frozen=True)
class Schedule:
    """How the share of the goal moves over the borders of epochs.

    Attributes
    ----------
    name : str
        One of :data:`SCHEDULES`.
    every : int
        Epochs between two renewals.
    rounds : int
        Rounds of ``iterative``.
    begin, end : int
        Borders between which a ramp rises; without an end at three quarters of the training.
    initial : float
        Share at ``begin``.

    Examples
    --------
    >>> ramp = Schedule.parse({"name": "cubic", "end": 4})
    >>> [ramp.share(border, epochs=6) for border in range(7)]
    [0.0, 0.578125, 0.875, 0.984375, 1.0, None, None]
    >>> rounds = Schedule.parse({"name": "iterative", "rounds": 2})
    >>> [rounds.share(border, epochs=4) for border in range(5)]
    [0.5, None, 1.0, None, None]
    """

    name: str
    every: int = 1
    rounds: int = 1
    begin: int = 0
    end: int | None = None
    initial: float = 0.0

    @classmethod
    def parse(cls, value: Schedule | Mapping[str, Any] | str) -> Schedule:
        """Read a name, or a mapping with a name and the keys that belong to it.

        Raises
        ------
        ConfigError
            An unknown name or key, or a value out of range.
        """
        if isinstance(value, Schedule):
            return value
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or "name" not in given:
            raise ConfigError(
                f"schedule: {value!r} is not allowed (a name, or a mapping such as "
                "{name: cubic, end: 20})"
            )
        name = _ALIASES.get(given["name"], given["name"])
        if name not in SCHEDULES:
            raise ConfigError(unknown_name("schedule", str(name), SCHEDULES, "schedule.name"))
        allowed = ("name", *SCHEDULES[name])
        for key in given:
            if key not in allowed:
                raise ConfigError(unknown_name("key", str(key), allowed, f"schedule {name}"))
        made = cls(**{**given, "name": name})
        made._check()
        return made

    def _check(self) -> None:
        for field, low in (("every", 1), ("rounds", 1), ("begin", 0), ("end", 1)):
            number = getattr(self, field)
            if number is None and field == "end":
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < low:
                raise ConfigError(
                    f"schedule.{field}: {number!r} is not allowed (a whole number from {low})"
                )
        if not isinstance(self.initial, int | float) or not 0 <= self.initial < 1:
            raise ConfigError(
                f"schedule.initial: {self.initial!r} is not allowed (a number from 0 to below 1)"
            )
        if self.end is not None and self.end <= self.begin:
            raise ConfigError(f"schedule.end: {self.end} is not after begin, {self.begin}")

    def check(self, epochs: int) -> None:
        """Raise a ConfigError if a training of so many epochs would not reach the goal."""
        if epochs < 1 and self.name not in ("one-shot", "constant"):
            raise ConfigError(
                f"schedule {self.name}: needs training: an evaluator= and epochs (in a recipe: a "
                "sparsify section)"
            )
        if self.name == "iterative" and self.rounds > epochs:
            raise ConfigError(
                f"schedule.rounds: {self.rounds} rounds do not fit into {epochs} epochs"
            )
        if self.name in ("linear", "cubic"):
            last = self._last(epochs)
            if last > epochs or last <= self.begin:
                which = "begin" if self.end is None else "end"
                raise ConfigError(
                    f"schedule.{which}: {getattr(self, which)} is too late for a training of "
                    f"{epochs} epochs"
                )

    def share(self, border: int, epochs: int) -> float | None:
        """Return the share of the goal for masks made at a border; None: none are made there.

        Parameters
        ----------
        border : int
            From 0, before the first epoch, to `epochs`, after the last.
        epochs : int
            Length of the training.
        """
        if self.name == "one-shot":
            return 1.0 if border == epochs else None
        if self.name == "constant":
            return 1.0 if border % self.every == 0 or border == epochs else None
        if self.name == "iterative":
            starts = [k * epochs // self.rounds for k in range(self.rounds)]
            return (starts.index(border) + 1) / self.rounds if border in starts else None
        last = self._last(epochs)
        if not self.begin <= border <= last:
            return None
        if (border - self.begin) % self.every and border != last:
            return None
        left = 1 - (border - self.begin) / (last - self.begin)
        if self.name == "cubic":
            left = left**3
        return 1 - (1 - self.initial) * left

    def _last(self, epochs: int) -> int:
        return round(_RAMP * epochs) if self.end is None else self.end
