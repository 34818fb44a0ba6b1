"""The ``prune:`` section of a recipe, and the pruner it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nni_gconv.errors import ConfigError
from nni_gconv.pruning.options import Budget
from nni_gconv.pruning.reconstruction import ReconstructSettings
from nni_gconv.pruning.registry import METHODS, find_method

if TYPE_CHECKING:
    from nni.compression.utils import Evaluator
    from torch import nn

    from nni_gconv.pruning.pruner import TrainedPruner


class CalibrationSettings(BaseModel):
    """The ``calibration:`` key of the prune section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(1024, ge=2, description="Of the training split, as evaluation sees them.")
    batch_size: int = Field(256, ge=1, description="Images in one pass where not all fit.")
    share: str | None = Field(
        None,
        description="'experiment': trials of one NNI experiment that look at the same network and "
        "images gather statistics once; or a folder, for the same among runs.",
    )


class PruneSettings(BaseModel):
    """How a network is pruned; method and options are checked by the method's class.

    Examples
    --------
    >>> PruneSettings(method="fpgm", budget={"macs": 0.5}).config_list
    [{'op_types': ['Conv2d']}]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(
        "second_order",
        description=f"{', '.join(METHODS)}; nni:L1NormPruner and NNI's other filter pruners; a "
        "registered name; or package.module:Class. With calibration it may be left out.",
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
    calibration: CalibrationSettings | None = Field(
        None,
        description="Images of the training split that methods and reconstruct look at; never of "
        "validation or test.",
    )
    reconstruct: bool | ReconstructSettings | None = Field(
        None,
        description="Whether the weights that are left are fitted to the dense network's outputs; "
        "null: with second_order.",
    )
    allocation: Literal["error", "exact", "uniform", "global"] | None = Field(
        None, description="How second_order deals a budget out among sets; null: error."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Of the method, see the tables below."
    )

    @model_validator(mode="after")
    def _known(self) -> PruneSettings:
        if "method" not in self.model_fields_set and self.calibration is None:
            raise ConfigError(
                "prune.method: is missing; name one, or give calibration: {images: 1024} for "
                "second_order"
            )
        if self.reconstruct and self.calibration is None:
            raise ConfigError("prune.reconstruct: needs prune.calibration: {images: 1024}")
        find_method(self.method).check(self.method_options)
        return self

    @property
    def method_options(self) -> dict[str, Any]:
        """Options of the method, those with keys of their own too."""
        own = {} if self.allocation is None else {"allocation": self.allocation}
        return {**self.options, **own}

    @property
    def reconstruction(self) -> ReconstructSettings | None:
        """How weights are fitted; None: they are not."""
        asked = self.reconstruct
        if asked is None:
            asked = self.method == "second_order"
        return ReconstructSettings.parse(asked)


def create_pruner(
    settings: PruneSettings,
    model: nn.Module,
    *,
    dummy_input: Any,
    evaluator: Evaluator | None = None,
    **further: Any,
) -> TrainedPruner:
    """Make the pruner that a recipe asks for.

    Parameters
    ----------
    settings : PruneSettings
        Method, layers, budget and options.
    model : nn.Module
        The dense model; it is wrapped.
    dummy_input : Tensor
        Example input.
    evaluator : Evaluator, optional
        For methods that train.
    **further
        Options that come from elsewhere than the prune section.

    Raises
    ------
    ConfigError
        What the method itself finds wrong with model and config_list.
    """
    config_list = [dict(entry) for entry in settings.config_list]
    common = {
        "dummy_input": dummy_input,
        "budget": settings.budget,
        "reconstruct": settings.reconstruction,
        **further,
    }
    method = find_method(settings.method)
    return method.make(model, config_list, evaluator, **settings.method_options, **common)
