"""Which channels go first: by the methods of recipes, or at random."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from nni_gconv.config_list import modern
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.pruning import ChannelPruner, PruneSettings, Rule, create_pruner, find_method

#: Criterion -> method of a recipe that removes channels in that order.
CRITERIA: dict[str, str] = {
    "l1": "nni:L1NormPruner",
    "l2": "nni:L2NormPruner",
    "fpgm": "fpgm",
    "gamma": "slimming",
    "random": "random",
}
_LAYERS = {"Conv1d", "Conv2d", "Conv3d", "Linear"}


def ranked_by(
    criterion: str,
    model: nn.Module,
    dummy_input: Any,
    config_list: list[dict[str, Any]] | None,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[ChannelPruner, dict[str, Any]]:
    """Make the pruner whose order of channels a criterion means, on a copy of the model.

    Parameters
    ----------
    criterion, model, dummy_input, config_list, options, seed
        See :func:`nni_gconv.sensitivity`.

    Returns
    -------
    pruner : ChannelPruner
        Its ratios mean nothing.
    section : dict
        ``method`` and ``options`` of a recipe's ``prune`` section for the same pruner, as far as
        there is one.
    """
    if criterion not in CRITERIA:
        raise ConfigError(unknown_name("criterion", criterion, CRITERIA, "criterion"))
    options = dict(options or {})
    rule: Rule = options.get("coupling", "mean")
    if rule == "union":
        raise ConfigError("options.coupling: under union there is no single order (mean or max)")
    model = copy.deepcopy(model)  # a pruner wraps the layers of its model
    if config_list is not None:
        config_list = modern(model, config_list)
    entries = _without_goals([_every_layer(model)] if config_list is None else config_list)
    method = CRITERIA[criterion]
    if method == "random":
        options.setdefault("seed", seed)
    find_method(method).check(options)
    settings = PruneSettings(method=method, config_list=entries, options=options)
    section = {"method": method, **({"options": options} if options else {})}
    return create_pruner(settings, model, dummy_input=dummy_input), section


def _every_layer(model: nn.Module) -> dict[str, Any]:
    kinds = sorted({type(module).__name__ for module in model.modules()} & _LAYERS)
    if not kinds:
        raise ConfigError("the model has no convolution and no linear layer")
    return {"op_types": kinds}


def _without_goals(config_list: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every entry a ratio, which a pruner asks for and nobody looks at."""
    for number, entry in enumerate(config_list):
        if not isinstance(entry, Mapping):
            raise ConfigError(f"config_list[{number}]: expected a mapping, got {entry!r}")
    return [{**entry, "sparse_ratio": 0.0} for entry in config_list]
