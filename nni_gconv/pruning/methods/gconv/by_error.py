"""Groups by output error: what calibration images say of the layers that are to be split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import OutputError, errors_of_groups
from nni_gconv.pruning.calibration import layer_covariances
from nni_gconv.pruning.group_sides import LiveLayer, Sharing


def by_error(options: Any) -> bool:
    """Tell whether layers are split by output error."""
    return isinstance(options.criterion, str) and options.criterion == "error"


def live_covariances(
    model: nn.Module, layers: Mapping[str, LiveLayer], options: Any, sharing: Sharing
) -> dict[str, Tensor] | None:
    """Measure what layers read, of the channels that masks leave; None for other criteria.

    Raises
    ------
    ConfigError
        There are no images, or an option does not go with this criterion.
    """
    if not by_error(options):
        return None
    if options.calibration is None:
        raise ConfigError(
            "criterion error: looks at images: give calibration= (in a recipe prune.calibration: "
            "{images: 1024})"
        )
    if sharing != "none":
        raise ConfigError(
            f"sharing: {sharing!r} does not go with criterion error, which splits each layer by "
            "itself; leave it out or say none"
        )
    if options.method != "assignment":
        raise ConfigError(
            f"method: {options.method!r} does not go with criterion error; leave it out"
        )
    found = {}
    for name, whole in layer_covariances(model, options.calibration, layers).items():
        live = layers[name]
        each = whole.view(live.had, *whole.shape[-2:])
        taps = each.shape[1] * live.had // live.shape[1]
        columns = [(c[:, None] * taps + np.arange(taps)).reshape(-1) for c in live.parts()[1]]
        alive = [own[c][:, c] for own, c in zip(each, columns, strict=True)]
        found[name] = alive[0] if live.had == 1 else torch.stack(alive)
    return found


def output_errors(
    model: nn.Module,
    layers: Mapping[str, LiveLayer],
    names: Iterable[str],
    covariances: Mapping[str, Tensor] | None,
) -> dict[str, list[OutputError]]:
    """Set up the errors of each group of layers, of what is alive; none for other criteria."""
    found: dict[str, list[OutputError]] = {}
    if covariances is None:
        return found
    for name in names:
        if name not in covariances:
            raise ConfigError(
                f"criterion error: what {name} reads cannot be seen (a weight that is computed, or "
                "a transposed convolution); exclude it"
            )
        live = layers[name]
        weight = cast("Tensor", model.get_submodule(name).weight).detach().cpu().double()
        found[name] = errors_of_groups(live.left(weight.numpy()), covariances[name], live.had)
    return found
