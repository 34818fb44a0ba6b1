"""The ``prune:`` section of a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nni_gconv.pruning.options import Budget
from nni_gconv.pruning.registry import METHODS, find_method


class PruneSettings(BaseModel):
    """How a network is pruned; method and options are checked by the method's class.

    Examples
    --------
    >>> PruneSettings(method="fpgm", budget={"macs": 0.5}).config_list
    [{'op_types': ['Conv2d']}]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(
        description=f"{', '.join(METHODS)}; nni:L1NormPruner and NNI's other filter pruners; a "
        "registered name; or package.module:Class."
    )
    config_list: list[dict[str, Any]] = Field(
        default_factory=lambda: [{"op_types": ["Conv2d"]}],
        description="NNI's config_list; without sparse_ratio when there is a budget.",
    )
    budget: Budget | None = Field(
        None,
        description="{macs: 0.5}, {params: 0.3} or {latency: 0.6}: fractions of dense. Latency is "
        "measured at the report's first batch size on one CPU thread or the GPU: such masks depend "
        "on the machine.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Of the method, see the tables below."
    )

    @model_validator(mode="after")
    def _known(self) -> PruneSettings:
        find_method(self.method).check(self.options)
        return self
