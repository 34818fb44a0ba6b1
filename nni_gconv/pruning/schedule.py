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
from typing import Any, Literal

from pydantic import Field

from nni_gconv.checked import Checked, checked
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


class Schedule(Checked):
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

    name: Literal["one-shot", "constant", "iterative", "linear", "cubic"] = Field(title="schedule")
    every: int = Field(1, ge=1)
    rounds: int = Field(1, ge=1)
    begin: int = Field(0, ge=0)
    end: int | None = Field(None, ge=1)
    initial: float = Field(0.0, ge=0, lt=1)

    def __init__(self, name: str, every: int = 1, **keys: Any) -> None:
        super().__init__(**{"name": name, "every": every, **keys})

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
        allowed = ("name", *SCHEDULES.get(name, given))
        for key in given:
            if key not in allowed:
                raise ConfigError(unknown_name("key", str(key), allowed, f"schedule {name}"))
        made = checked(cls, {**given, "name": name}, "schedule")
        if made.end is not None and made.end <= made.begin:
            raise ConfigError(f"schedule.end: {made.end} is not after begin, {made.begin}")
        return made

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
