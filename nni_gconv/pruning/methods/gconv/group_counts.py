"""From what is asked of layers to group counts that what is alive of them allows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import check_groups, groups_for_max_size, read_group_config
from nni_gconv.groupconv.search import (
    GroupRequest,
    Score,
    search_groups,
    slower_than_dense,
)
from nni_gconv.profiling import count as costs_of
from nni_gconv.profiling import parse_budget
from nni_gconv.pruning.group_sides import LiveLayer, Sharing, Side
from nni_gconv.pruning.methods.gconv.criterion import static_criterion
from nni_gconv.pruning.selection.near_limit import CLOSE
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training import from_main_process

#: Equal counts spread over all layers, which can then share how they split.
_SCORE: Score = "geometric"


def named(where: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts, of which one has to be more than 1.

    Examples
    --------
    >>> named("group_config", {"conv": 2})
    {'conv': 2}
    """
    if not any(count > 1 for count in counts.values()):
        why = "the dense network is within it" if where == "budget" else "every layer stays dense"
        raise ConfigError(f"{where}: {why}, there is nothing to group")
    return dict(counts)


def asked_counts(
    model: nn.Module,
    dummy_input: Any,
    config_list: list[dict[str, Any]],
    layers: Mapping[str, LiveLayer],
    requests: Mapping[str, GroupRequest],
    options: Any,
    masks: Mapping[str, Mapping[str, Tensor]],
    covariances: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Group count of each layer as it is asked for, from one of three places.

    Parameters
    ----------
    model, dummy_input, config_list, layers, requests, masks
        As for :func:`searched_counts`.
    options : GroupConvPruner.Options
        With a ``budget``, a ``group_config`` or neither: then the config_list says how many.
    covariances : mapping of str to Tensor, optional
        As for :func:`searched_counts`.

    Returns
    -------
    counts : dict of str to int
        Layer -> G.
    skipped : dict of str to str
        Layers without one, each with the reason.
    """
    config = options.group_config
    if options.budget is not None and config is not None:
        raise ConfigError("budget and group_config exclude each other")
    if isinstance(config, str | Path):
        return named("group_config", read_group_config(config, model)), {}
    if config is not None:
        return named("group_config", check_groups(config, model, "group_config")), {}
    if options.budget is None:
        return requested_counts(layers, requests)
    criterion = static_criterion(options.criterion)
    found = searched_counts(
        model, dummy_input, config_list, layers, requests, options.budget, masks, criterion,
        covariances,
    )  # fmt: skip
    return found, {}


def searched_counts(
    model: nn.Module,
    dummy_input: Any,
    config_list: list[dict[str, Any]],
    layers: Mapping[str, LiveLayer],
    requests: Mapping[str, GroupRequest],
    budget: Mapping[str, float],
    masks: Mapping[str, Mapping[str, Tensor]],
    criterion: str | Mapping[str, Any],
    covariances: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """Search the group counts that keep the most score inside a budget, masks that hold counted.

    Parameters
    ----------
    model, dummy_input
        The dense model, and example arguments.
    config_list, requests
        What is asked of which layers, and the same read.
    layers : mapping of str to LiveLayer
        What masks leave of the layers.
    budget : mapping of str to float
        ``params``, ``macs``, ``latency``.
    masks : mapping
        Those that hold already; may be empty.
    criterion
        As in :func:`nni_gconv.search_groups`.
    covariances : mapping of str to Tensor, optional
        Of what masks leave of the layers; counts are then searched by output error.
    """
    score: Score = _SCORE if covariances is None else "error"
    options = {"score": score, "fill": CLOSE, "covariances": covariances}
    if masks:
        network, entries, limits, criterion = _beside(
            model, dummy_input, layers, requests, budget, masks, criterion
        )
    else:
        network, entries, limits = model, config_list, budget
    search = search_groups(network, dummy_input, entries, limits, criterion=criterion, **options)  # type: ignore[arg-type]
    # Processes may begin with other weights; those of the main one are what is trained.
    return named("budget", dict(from_main_process(dict(search))))


def _beside(
    model: nn.Module,
    dummy_input: Any,
    layers: Mapping[str, LiveLayer],
    requests: Mapping[str, GroupRequest],
    budget: Mapping[str, float],
    masks: Mapping[str, Mapping[str, Tensor]],
    criterion: str | Mapping[str, Any],
) -> tuple[nn.Module, list[dict[str, Any]], Mapping[str, float], str | Mapping[str, Any]]:
    """Find what to search where masks hold: the network they leave, counts in place of shares.

    Parameters
    ----------
    model, dummy_input, budget
        As for :func:`nni_gconv.search_groups`.
    layers : mapping of str to LiveLayer
        What the masks leave of the layers that `requests` names.
    requests : mapping of str to GroupRequest
        Layers to search.
    masks : mapping
        NNI's masks that hold already.
    criterion : str or mapping
        Norm of the kernels, or scores of the dense layers.

    Raises
    ------
    BudgetError
        The budget cannot be reached.
    ConfigError
        The budget names latency, which is not that of the dense network any more.
    """
    limits = parse_budget(budget)
    if "latency" in limits:
        raise ConfigError("budget.latency: cannot be measured beside masks=; give params or macs")
    small = copy.deepcopy(model)
    small = ModelSpeedup(small, dummy_input, masks, verify=False).speedup_model()
    there = dict(small.named_modules())
    dense = costs_of(model, dummy_input)._asdict()
    entries = [
        {"op_names": [name], **{k: v for k, v in vars(request).items() if v is not None}}
        for name, request in requests.items()
        if name in there
    ]
    if not isinstance(criterion, str):
        alive = {n: np.ix_(x.rows, x.columns) for n, x in layers.items() if n in criterion}
        criterion = {n: np.asarray(criterion[n])[index] for n, index in alive.items()}
    counts = {m: limit * dense[m] if limit <= 1 else limit for m, limit in limits.items()}
    return small, entries, counts, criterion


def slower_layers(
    model: nn.Module,
    dummy_input: Any,
    groups: Mapping[str, int],
    sides: Mapping[str, tuple[Side, Side]],
    sharing: Sharing,
) -> dict[str, str]:
    """Name the layers whose groups cost more time than they save, with the gathers they will need.

    Returns
    -------
    dict of str to str
        Layer -> what was measured.
    """
    gathers = {
        name: (into == (name, "in")) + (sharing == "none" and out == (name, "out"))
        for name, (out, into) in sides.items()
    }
    gate = slower_than_dense(model, dummy_input, groups, gathers=gathers)
    # A measurement differs from process to process.
    slower = from_main_process(
        {name: (row.ratio, row.form.endswith(", dense")) for name, row in gate.slower.items()}
    )
    return {
        name: f"measured: with {groups[name]} groups it takes {ratio:.2f} times as long as dense"
        + (", computed as a dense layer" if as_dense else "")
        for name, (ratio, as_dense) in slower.items()
    }


def requested_counts(
    layers: Mapping[str, LiveLayer], requests: Mapping[str, GroupRequest]
) -> tuple[dict[str, int], dict[str, str]]:
    """Turn ``num_groups`` and ``max_group_size`` into G.

    Returns
    -------
    counts : dict of str to int
        Layer -> G.
    skipped : dict of str to str
        Layers without one, each with the reason.

    Raises
    ------
    ConfigError
        A layer is asked neither.
    """
    counts: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for name, request in requests.items():
        size = request.max_group_size
        if request.num_groups is not None:
            counts[name] = request.num_groups
            continue
        if size is None:
            raise ConfigError(
                f"config_list: {name} has neither num_groups nor max_group_size, and there is no "
                "budget or group_config"
            )
        filters, channels = layers[name].alive
        count = groups_for_max_size(filters, channels, size)
        if count is None:
            skipped[name] = (
                f"groups of {size} do not divide {filters} filters and {channels} input channels"
            )
        elif count == 1:
            skipped[name] = f"it is no wider than {size} channels"
        else:
            counts[name] = count
    return counts, skipped


def fitting_counts(
    layers: Mapping[str, LiveLayer], counts: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, str]]:
    """Keep the counts of more than one group that divide what is alive of their layer.

    Returns
    -------
    counts : dict of str to int
        In the order in which the layers run.
    skipped : dict of str to str
        Layers that stay dense although more than one group is asked, each with the reason.
    """
    skipped: dict[str, str] = {}
    for name, count in counts.items():
        if count == 1:
            continue
        if name not in layers:
            skipped[name] = "the config_list does not select it"
        elif any(size % count for size in layers[name].alive):
            filters, channels = layers[name].alive
            skipped[name] = (
                f"{count} groups do not divide {filters} filters and {channels} input channels"
            )
        elif layers[name].had > 1 and (reason := _not_further(layers[name], count)):
            skipped[name] = reason
    fitting = {n: counts[n] for n in layers if counts.get(n, 1) > 1 and n not in skipped}
    return fitting, skipped


def _not_further(layer: LiveLayer, count: int) -> str | None:
    """Why a layer that has groups already does not get so many; None where it can."""
    if not layer.whole:
        return "masks silence channels of its groups: cut them with ModelSpeedup before"
    if count <= layer.had or count % layer.had:
        return f"it has {layer.had} groups already, which {count} groups do not divide further"
    return None
