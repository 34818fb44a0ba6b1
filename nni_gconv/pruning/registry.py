"""Pruning methods by the name a recipe calls them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from nni_gconv.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from nni.compression.utils import Evaluator

    from nni_gconv.pruning.channel_pruner import ChannelPruner

__all__ = ["METHODS", "PruneSettings", "create_pruner"]

#: Name in a recipe -> module and class.
METHODS = {
    "fpgm": ("nni_gconv.pruning.methods.fpgm", "FPGMPruner"),
    "gconv": ("nni_gconv.pruning.methods.gconv.pruner", "GroupConvPruner"),
    "gsparsity": ("nni_gconv.pruning.methods.gsparsity.pruner", "GSparsityPruner"),
    "shuffle": ("nni_gconv.pruning.methods.shuffle.pruner", "ShufflePruner"),
    "slimming": ("nni_gconv.pruning.methods.slimming.pruner", "SlimmingPruner"),
}
_NOT_OPTIONS = {
    "self",
    "model",
    "config_list",
    "evaluator",
    "existed_wrappers",
    "dummy_input",
    "budget",
    "masks",
}


class PruneSettings(BaseModel):
    """The ``prune:`` section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(
        description=f"{', '.join(METHODS)}, or nni:L1NormPruner and NNI's other filter pruners."
    )
    config_list: list[dict[str, Any]] = Field(
        default_factory=lambda: [{"op_types": ["Conv2d"]}],
        description="NNI's config_list; without sparse_ratio when there is a budget.",
    )
    budget: dict[str, float] | None = Field(
        None,
        description="{macs: 0.5}, {params: 0.3} or {latency: 0.6}: fractions of dense. Latency is "
        "measured at the report's first batch size on one CPU thread or the GPU: such masks depend "
        "on the machine.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the method's class."
    )


def create_pruner(
    settings: PruneSettings,
    model: nn.Module,
    *,
    dummy_input: Any,
    evaluator: Evaluator | None = None,
) -> ChannelPruner:
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

    Raises
    ------
    ConfigError
        Unknown method or option, or what the method itself finds wrong.
    """
    common = {
        "evaluator": evaluator,
        "dummy_input": dummy_input,
        "budget": settings.budget,
    }
    config_list = [dict(entry) for entry in settings.config_list]
    if settings.method.startswith("nni:"):
        from nni_gconv.pruning.methods.nni import NNIMethodPruner

        options = dict(settings.options)
        ours = {key: options.pop(key) for key in ("coupling", "schedule") if key in options}
        name = settings.method.removeprefix("nni:")
        return NNIMethodPruner(model, config_list, method=name, options=options, **ours, **common)
    if settings.method not in METHODS:
        names = [*METHODS, "nni:L1NormPruner", "nni:L2NormPruner", "nni:FPGMPruner"]
        raise ConfigError(unknown_name("method", settings.method, names, "prune.method"))
    module, name = METHODS[settings.method]
    kind = getattr(importlib.import_module(module), name)
    _check_options(kind, settings.options)
    return kind(model, config_list, **common, **settings.options)


def _check_options(kind: type, options: Mapping[str, Any]) -> None:
    allowed = set(inspect.signature(kind).parameters) - _NOT_OPTIONS
    for option in options:
        if option not in allowed:
            raise ConfigError(unknown_name("option", option, allowed, "prune.options"))
