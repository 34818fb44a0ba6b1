"""From what is asked of layers to group counts that what is alive of them allows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import (
    check_groups,
    groups_for_max_size,
    groups_of,
    read_group_config,
)
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


def named(where: str, counts: Mapping[str, int], model: nn.Module) -> dict[str, int]:
    """Return counts, of which one has to be more than its layer has.

    Examples
    --------
    >>> named("group_config", {"0": 2}, nn.Sequential(nn.Conv2d(4, 4, 1)))
    {'0': 2}
    """
    if not any(g > groups_of(model.get_submodule(name)) for name, g in counts.items()):
        why = (
            "the dense network is within it" if where == "budget" else "every layer stays as it is"
        )
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
        return named("group_config", read_group_config(config, model), model), {}
    if config is not None:
        return named("group_config", check_groups(config, model, "group_config"), model), {}
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
    return named("budget", dict(from_main_process(dict(search))), model)


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
        criterion = {
            name: live.left(np.asarray(criterion[name]))
            for name, live in layers.items()
            if name in criterion
        }
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
        {
            name: (row.ratio, row.form.endswith(", dense"), row.had)
            for name, row in gate.slower.items()
        }
    )
    return {
        name: f"measured: with {groups[name]} groups it takes {ratio:.2f} times as long as "
        + ("dense" if had == 1 else f"with its {had}")
        + (", computed as a dense layer" if as_dense else "")
        for name, (ratio, as_dense, had) in slower.items()
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
        size, had = request.max_group_size, layers[name].had
        if request.num_groups is not None:
            if request.num_groups == had > 1:
                skipped[name] = f"it has {had} groups already"
            else:
                counts[name] = request.num_groups
            continue
        if size is None:
            raise ConfigError(
                f"config_list: {name} has neither num_groups nor max_group_size, and there is no "
                "budget or group_config"
            )
        filters, channels = layers[name].alive
        if max(filters, channels) <= had * size:
            whose = "it is" if had == 1 else f"its {had} groups are"
            skipped[name] = f"{whose} no wider than {size} channels"
            continue
        count = groups_for_max_size(filters, channels, size)
        if count is None or count % had:
            skipped[name] = (
                f"groups of {size} do not divide {filters} filters and {channels} input channels"
                + (f" in {had} groups" if had > 1 else "")
            )
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
        had = layers[name].had if name in layers else 1
        if count == 1:
            continue
        if name not in layers:
            skipped[name] = "the config_list does not select it"
        elif any(size % count for size in layers[name].alive):
            filters, channels = layers[name].alive
            skipped[name] = (
                f"{count} groups do not divide {filters} filters and {channels} input channels"
            )
        elif count % had:
            skipped[name] = f"it has {had} groups already, of which {count} are no multiple"
    fitting = {
        name: counts[name]
        for name, layer in layers.items()
        if counts.get(name, 1) > layer.had and name not in skipped
    }
    return fitting, skipped
