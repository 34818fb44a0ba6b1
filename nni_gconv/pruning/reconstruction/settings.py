"""What can be asked of a reconstruction: the ``reconstruct:`` key of a recipe, or the option."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nni_gconv.checked import Checked, checked
from nni_gconv.errors import ConfigError

#: Places for each weight of a filter, at least.
PLACES = 6


class ReconstructSettings(Checked):
    """How the weights that are left are fitted to the dense network's outputs."""

    ridge: float | None = Field(
        None,
        gt=0,
        description="Strength that draws weights towards what they are, relative to the mean "
        "second moment of what a layer reads; null: each layer's best of 0.001, 0.01, 0.1.",
    )
    recalibrate_bn: bool | Literal["auto"] = Field(
        "auto",
        description="Whether batch norm statistics are estimated anew at the end; auto: if that "
        "brings the outputs nearer to the dense network's, on images held out.",
    )
    places: int = Field(
        PLACES,
        ge=2,
        description="Places of the images that a layer is looked at, at least so many for each "
        "weight of one of its filters: more takes longer, and serves layers of thousands of "
        "weights a filter; narrow ones are looked at more often anyway.",
    )

    @classmethod
    def parse(cls, value: Any) -> ReconstructSettings | None:
        """Read ``true``, ``false``, null or a mapping."""
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, ReconstructSettings):
            return value
        if isinstance(value, dict):
            return checked(cls, value, "reconstruct")
        raise ConfigError(f"reconstruct: {value!r} is not allowed (true, false or a mapping)")
