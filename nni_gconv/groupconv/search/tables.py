"""What each group count of each layer keeps and costs: the tables a group search chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.groupconv.choices import check_count, group_choices, groups_of
from nni_gconv.groupconv.partition import l1, l2, partition_many
from nni_gconv.groupconv.search.requests import GroupRequest, group_requests
from nni_gconv.groupconv.search.timing import LayerTimer
from nni_gconv.profiling import Counts, profile

#: Criteria by name: weight (F, C, ...) -> scores (F, C).
CRITERIA: dict[str, Callable[[Any], Any]] = {"l2": l2, "l1": l1}
#: Called with the matrices that are split so far, and all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerTable:
    """One layer's options.

    Attributes
    ----------
    name : str
        The layer.
    filters, channels : int
        F and C of the layer, of all its groups.
    choices : tuple of int
        Group counts G, ascending; multiples of `had`.
    params, macs : tuple of int
        Of the layer's weight, for each G.
    retained : tuple of float
        Score inside the groups, for each G; empty before :func:`score_tables`.
    total : float
        Score of the layer as it is.
    milliseconds : tuple of float or None
        Time of the layer's calls in one forward pass for each G, where it was measured.
    dense_milliseconds : float or None
        The same of the layer as it is.
    had : int
        Groups that the layer has already: with so many it stays as it is.
    """

    name: str
    filters: int
    channels: int
    choices: tuple[int, ...]
    params: tuple[int, ...]
    macs: tuple[int, ...]
    retained: tuple[float, ...] = ()
    total: float = 0.0
    milliseconds: tuple[float, ...] | None = None
    dense_milliseconds: float | None = None
    had: int = 1

    @property
    def dense_params(self) -> int:
        """Parameters of the layer's weight as it is."""
        return self.params[0] * self.choices[0] // self.had

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the layer as it is."""
        return self.macs[0] * self.choices[0] // self.had

    def fraction(self, option: int) -> float:
        """Share of the layer's score that an option retains; 1 if there is no score to lose."""
        return 1.0 if self.total == 0 else self.retained[option] / self.total


@dataclass(frozen=True)
class GroupTables:
    """All layers' options.

    Attributes
    ----------
    layers : tuple of LayerTable
        Layers that the config_list selects and that can be grouped, in the model's order.
    skipped : dict of str to str
        Selected layers that stay dense, each with the reason.
    dense : Counts
        Parameters and MACs of the whole dense model.
    """

    layers: tuple[LayerTable, ...]
    skipped: dict[str, str]
    dense: Counts


@dataclass(frozen=True)
class ChoiceRules:
    """Which group counts a layer without a wish of its own may have.

    See :func:`nni_gconv.groupconv.choices.group_choices`. Of a layer that has groups already, and
    where `further` allows it, these are multiples of its groups: each of them is split alike.
    """

    max_groups: int = 64
    min_factor: int = 1
    depthwise: bool = False
    further: bool = True

    def choices(self, layer: nn.Module, request: GroupRequest) -> tuple[int, ...]:
        """Group counts of a layer; none if its request cannot be met."""
        (filters, channels), had = _sizes(layer), groups_of(layer)
        if request.num_groups is not None:
            count = request.num_groups
            return () if filters % count or channels % count or count % had else (count,)
        of_each = group_choices(
            filters // had,
            channels // had,
            max_groups=max(1, check_count(self.max_groups, "max_groups") // had),
            min_factor=self.min_factor,
            depthwise=self.depthwise,
        )
        every, most = (had * g for g in of_each), request.max_group_size
        return tuple(g for g in every if most is None or max(filters, channels) <= g * most)


def cost_tables(
    model: nn.Module,
    dummy_input: Any,
    config_list: Sequence[Mapping[str, Any]],
    rules: ChoiceRules = ChoiceRules(),
    *,
    timer: LayerTimer | None = None,
    gathers: int = 0,
) -> GroupTables:
    """Find each layer's group counts and what they cost; scores come by :func:`score_tables`.

    Parameters
    ----------
    model, dummy_input, config_list, gathers
        As for :func:`nni_gconv.groupconv.search.search.search_groups`.
    rules : ChoiceRules
        Which group counts are tried.
    timer : LayerTimer, optional
        Times the layers too.

    Returns
    -------
    GroupTables
        Options of each layer, and the layers that are left out.

    Raises
    ------
    ConfigError
        A wrong config_list, or no layer that can be grouped.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False))
    >>> found = cost_tables(net, torch.zeros(1, 4, 2, 2), [{"op_types": ["Conv2d"]}])
    >>> found.layers[0].choices, found.layers[0].params, found.layers[0].macs
    ((1, 2, 4), (32, 16, 8), (128, 64, 32))
    """
    requests, skipped = group_requests(model, config_list, further=rules.further)
    layers = dict(model.named_modules(remove_duplicate=False))
    choices: dict[str, tuple[int, ...]] = {}
    owners = _owners(model)
    for name, request in requests.items():
        reason = _unsuitable(name, layers[name], owners)
        found = rules.choices(layers[name], request)
        if reason is None and not found:
            reason = _unmet(layers[name], request)
        if reason is None:
            choices[name] = found
        else:
            skipped[name] = reason
    if not choices:
        reasons = "; ".join(f"{n}: {r}" for n, r in list(skipped.items())[:3])
        raise ConfigError(f"config_list: selects no layer that can be grouped ({reasons})")
    counted = profile(model, dummy_input)
    macs = {row.name: row.macs for row in counted.layers}
    tables = []
    for name, counts in choices.items():
        had = groups_of(layers[name])
        weights = int(layers[name].weight.numel())  # type: ignore[union-attr, operator]
        tables.append(
            LayerTable(
                name,
                *_sizes(layers[name]),
                counts,
                tuple(weights * had // g for g in counts),
                tuple(macs[name] * had // g for g in counts),
                had=had,
            )
        )
    if timer is not None:
        tables = [_timed(table, timer, gathers) for table in tables]
    return GroupTables(tuple(tables), skipped, Counts(counted.params, counted.macs))


def _timed(table: LayerTable, timer: LayerTimer, gathers: int) -> LayerTable:
    rows = timer.measure(table.name, table.choices, gathers=gathers)
    dense = rows[0].dense_ms
    # What several measurements of the dense layer say may differ; what a layer gains does not.
    times = tuple(dense * row.ratio for row in rows)
    return replace(table, milliseconds=times, dense_milliseconds=dense)


def score_tables(
    tables: GroupTables,
    model: nn.Module,
    criterion: str | Mapping[str, Any] = "l2",
    *,
    restarts: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> GroupTables:
    """Partition every layer for each of its group counts, and note the score retained.

    Parameters
    ----------
    tables : GroupTables
        Of the same model.
    model, criterion, restarts, seed, progress
        As for :func:`nni_gconv.groupconv.search.search.search_groups`.

    Returns
    -------
    GroupTables
        With `retained` and `total` of every layer.

    Raises
    ------
    ConfigError
        An unknown criterion, or scores that do not fit.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False))
    >>> counted = cost_tables(net, torch.zeros(1, 4, 2, 2), [{"op_types": ["Conv2d"]}])
    >>> table = score_tables(counted, net).layers[0]
    >>> table.fraction(0), 0.5 < table.fraction(1) < 1
    (1.0, True)
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    scores = {
        t.name: kernel_scores(t.name, layers[t.name].weight, criterion) for t in tables.layers
    }
    retained = _retained(scores, tables.layers, restarts, seed, progress)
    scored = (
        replace(t, retained=retained[t.name], total=float(scores[t.name].sum()))
        for t in tables.layers
    )
    return replace(tables, layers=tuple(scored))


def _retained(
    scores: Mapping[str, NDArray[np.float64]],
    tables: Sequence[LayerTable],
    restarts: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, tuple[float, ...]]:
    """Score that the best partitions found retain, for each layer and count.

    Each of the groups that a layer has is split by itself.
    """
    blocks = {t.name: np.split(scores[t.name], t.had) for t in tables}
    kinds: dict[tuple[int, ...], list[LayerTable]] = {}
    for table in tables:
        kinds.setdefault(blocks[table.name][0].shape, []).append(table)
    retained = {t.name: dict.fromkeys(t.choices, 0.0) for t in tables}
    done, every = 0, sum(len(t.choices) for t in tables)
    # Kind by kind, so that there is something to report in between.
    for kind in kinds.values():
        jobs = [(t, block, g) for t in kind for g in t.choices for block in blocks[t.name]]
        found = partition_many(
            [block for _, block, _ in jobs],
            [count // table.had for table, _, count in jobs],
            restarts=restarts,
            seed=seed,
            bounds=False,
        )
        for (table, _, count), result in zip(jobs, found, strict=True):
            retained[table.name][count] += result.retained
        done += sum(len(t.choices) for t in kind)
        if progress is not None:
            progress(done, every)
    return {name: tuple(kept.values()) for name, kept in retained.items()}


def kernel_scores(
    name: str, weight: Any, criterion: str | Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the scores of a layer's kernels, shape (F, C), finite and not negative.

    Parameters
    ----------
    name : str
        The layer.
    weight : Tensor, shape (F, C, ...)
        Its weight.
    criterion : {"l2", "l1"} or mapping of str to array (F, C)
        Norm of the kernels, or scores of each layer.

    Raises
    ------
    ConfigError
        An unknown criterion, or scores that are missing or do not fit; the message names the layer.

    Examples
    --------
    >>> import torch
    >>> kernel_scores("conv", torch.ones(1, 2, 3, 3), "l1").tolist()
    [[9.0, 9.0]]
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ConfigError(unknown_name("criterion", criterion, CRITERIA))
        scores, what = CRITERIA[criterion](weight), f"{criterion} of {name}"
    elif not isinstance(criterion, Mapping):
        kind = type(criterion).__name__
        raise ConfigError(f"criterion: {', '.join(CRITERIA)} or layer -> scores, not a {kind}")
    elif name in criterion:
        scores, what = criterion[name], f"criterion[{name!r}]"
    else:
        given = ", ".join(map(str, list(criterion)[:5])) or "none"
        raise ConfigError(f"criterion: no scores for the layer {name!r} (given for: {given})")
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu()
    try:
        matrix = np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: no matrix of numbers ({error})") from None
    if matrix.shape != tuple(weight.shape[:2]):
        raise ConfigError(f"{what}: shape {matrix.shape} is not (F, C) = {tuple(weight.shape[:2])}")
    if not (np.isfinite(matrix) & (matrix >= 0)).all():
        raise ConfigError(f"{what}: scores are finite and not negative, some are not")
    return matrix


def _owners(model: nn.Module) -> dict[Any, list[str]]:
    """First names of the modules that own each parameter."""
    owners: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    return owners


def _unsuitable(name: str, layer: nn.Module, owners: Mapping[Any, list[str]]) -> str | None:
    """Why a layer cannot be counted on its own."""
    if not isinstance(layer.weight, nn.Parameter):
        return "its weight is computed from other parameters"
    sharing = owners[layer.weight]
    if len(sharing) > 1:
        return f"it shares its weight with {next(n for n in sharing if n != name)}"
    return None if sharing == [name] else f"it is the same layer as {sharing[0]}"


def _unmet(layer: nn.Module, request: GroupRequest) -> str:
    filters, channels = _sizes(layer)
    sizes = f"{filters} filters and {channels} input channels"
    if request.num_groups is not None:
        had, count = groups_of(layer), request.num_groups
        if count % had:
            return f"it has {had} groups already, of which {count} are no multiple"
        return f"{count} groups do not divide its {sizes}"
    return f"no allowed number of groups leaves {request.max_group_size} or fewer of its {sizes}"


def _sizes(layer: nn.Module) -> tuple[int, int]:
    return int(layer.out_channels), int(layer.in_channels)  # type: ignore[arg-type]
