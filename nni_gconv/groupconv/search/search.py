"""How many groups each layer gets: the most kernel score that fits a budget.

Each layer has a table: for every number of groups G it allows, the score that the best partition
retains and what the layer then costs. One G a layer is chosen such that the whole network stays
within the budget and as much score as possible remains (GConv Prune, arXiv 1811.09341).

State what you are short of. Parameters alone are a poor proxy of the work: early layers have few
of them and many multiply-accumulates, so a search for parameters leaves those dense. On
PreResNet-164 the paper's search and "2 groups everywhere" have equally many parameters, but the
searched network does half as many multiply-accumulates again and is less accurate. Budgets of
params and macs (and latency) may hold at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nni_gconv.display import Table
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.groupconv.config import write_entries
from nni_gconv.groupconv.search.budget import (
    SCORES,
    STRATEGIES,
    Score,
    Strategy,
    check_reachable,
    counts,
    solve_tables,
    solve_timed,
)
from nni_gconv.groupconv.search.error_tables import error_tables
from nni_gconv.groupconv.search.tables import (
    ChoiceRules,
    LayerTable,
    Progress,
    cost_tables,
    score_tables,
)
from nni_gconv.groupconv.search.timing import LayerTimer
from nni_gconv.profiling import Counts, parse_budget

#: What rounding may leave between a bound and the choice that meets it.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class GroupSearch(Mapping[str, int]):
    """Group counts found: a mapping of layer to G, with what they keep and cost.

    A layer of as many groups as it has (1: dense) is left as it is.

    Attributes
    ----------
    groups : dict of str to int
        The mapping itself, in the model's order.
    retained : float
        Share of score that the groups retain, 0 to 1, over the layers of the mapping, averaged as
        `score` says.
    bound : float
        No choice from the same tables within the same budget retains more.
    params, macs : int
        Of the whole network; MACs for one sample.
    latency : float or None
        Measured time over that of the dense network, where the budget names it.
    dense : Counts
        Parameters and MACs of the dense network.
    budget : dict of str to float
        As it was given.
    strategy, score : str
        As they were given.
    tables : tuple of LayerTable
        All options of each layer.
    skipped : dict of str to str
        Selected layers that stay dense, each with the reason.
    """

    groups: dict[str, int]
    retained: float
    bound: float
    params: int
    macs: int
    latency: float | None
    dense: Counts
    budget: dict[str, float]
    strategy: str
    score: str
    tables: tuple[LayerTable, ...] = field(repr=False)
    skipped: dict[str, str] = field(repr=False)

    def __getitem__(self, name: str) -> int:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def gap(self) -> float:
        """How far `retained` may be from the best choice, as a share of `bound`; 0: it is best."""
        gap = 0.0 if self.bound == 0 else 1 - self.retained / self.bound
        return gap if gap > _ROUNDING else 0.0

    def save(self, path: str | Path) -> Path:
        """Write the group counts as JSON, see :mod:`nni_gconv.groupconv.config`."""
        sizes = {t.name: (self.groups[t.name], t.filters, t.channels) for t in self.tables}
        return write_entries(path, sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the options not taken, as plain values for JSON."""
        return {
            "strategy": self.strategy,
            "score": self.score,
            "budget": self.budget,
            "retained": self.retained,
            "bound": self.bound,
            "gap": self.gap,
            "params": self.params,
            "params_ratio": self.params / self.dense.params,
            "macs": self.macs,
            "macs_ratio": self.macs / self.dense.macs,
            "latency_ratio": self.latency,
            "layers": [self._row(table) for table in self.tables],
            "skipped": self.skipped,
        }

    def table(self, title: str | None = None) -> Table:
        """Return a row for each layer; totals below, the layers left out as caption."""
        kept = f"retained {self.retained:.1%} ({self.score}), gap {self.gap:.2%}"
        ratios = {"params": self.params / self.dense.params, "MACs": self.macs / self.dense.macs}
        if self.latency is not None:
            ratios["latency"] = self.latency
        costs = ", ".join(f"{measure} {ratio:.3f}" for measure, ratio in ratios.items())
        left = [f"{name} stays as it is: {reason}" for name, reason in self.skipped.items()]
        caption = "\n".join([f"{self.strategy}: {kept}; {costs} of dense", *left])
        table = Table(title=title, caption=caption, show_footer=True)
        table.add_column("layer", footer="whole network", no_wrap=True)
        for heading in ("F x C", "groups", "retained"):
            table.add_column(heading, justify="right")
        table.add_column("params", footer=f"{self.params:,}", justify="right")
        table.add_column("MACs", footer=f"{self.macs:,}", justify="right")
        for layer in self.tables:
            row = self._row(layer)
            table.add_row(
                layer.name,
                f"{layer.filters}x{layer.channels}",
                str(row["groups"]) if layer.had == 1 else f"{layer.had} -> {row['groups']}",
                f"{row['retained']:.1%}",
                f"{row['params']:,}",
                f"{row['macs']:,}",
            )
        return table

    def _row(self, table: LayerTable) -> dict[str, Any]:
        option = table.choices.index(self.groups[table.name])
        return {
            "layer": table.name,
            "filters": table.filters,
            "channels": table.channels,
            "had": table.had,
            "groups": table.choices[option],
            "retained": table.fraction(option),
            "params": table.params[option],
            "macs": table.macs[option],
        }


def search_groups(  # noqa: PLR0913 - one argument an option
    model: nn.Module,
    dummy_input: Any,
    config_list: Sequence[Mapping[str, Any]],
    budget: Mapping[str, float],
    *,
    criterion: str | Mapping[str, Any] = "l2",
    strategy: Strategy = "exact",
    score: Score = "relative",
    covariances: Mapping[str, Any] | None = None,
    min_factor: int = 1,
    max_groups: int = 64,
    depthwise: bool = False,
    restarts: int = 0,
    gathers: int = 0,
    fill: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> GroupSearch:
    """Choose each layer's group count such that most kernel score is retained within a budget.

    Parameters
    ----------
    model : nn.Module
        The dense model; not changed.
    dummy_input : Tensor, tuple or dict
        One example; MACs are per sample, latency is that of the whole batch.
    config_list : sequence of mapping
        NNI's config_list. The layers it selects are searched; ``num_groups`` of an entry fixes
        their G, ``max_group_size`` caps the channels of a group on the wider side. A convolution
        that has groups already keeps them, or gets a multiple of them: each is split by itself.
    budget : mapping of str to float
        ``params``, ``macs``, ``latency``: fractions of the dense network, or absolute counts
        (above 1; not for latency). All of them hold.
    criterion : {"l2", "l1"} or mapping of str to array (F, C / groups), default "l2"
        Norm of the kernels, or scores of each layer, such as
        :func:`nni_gconv.groupconv.partition.taylor` of weights and gradients.
    strategy : {"exact", "max_cost"}, default "exact"
        Integer program, or the paper's local search from the largest group counts (its error
        mended: of all steps within the budget the one that retains most is taken). The latter
        knows no budget of latency.
    score : {"relative", "absolute", "geometric", "error"}, default "relative"
        Mean of the layers' retained shares, in which every layer counts alike; retained share of
        the sum of all scores; or geometric mean of the layers' shares. Under the first two, few
        layers get many groups and the others stay dense, since a layer's second halving loses half
        as much as its first and saves half as much. The third spreads groups over all layers: each
        halving costs the same there. The last needs `covariances` and is not of kernels: mean of
        the shares of the layers' outputs that groups can still say once their weights are refitted,
        so that the sum of relative output errors is least.
    covariances : mapping of str to array (C * taps, C * taps), optional
        For ``"error"``: covariance of what each layer reads, columns as in the flattened weight (of
        a layer that has groups one of each), such as
        :func:`nni_gconv.pruning.calibration.layer_covariances` measures.
    min_factor : int, default 1
        Each group keeps at least so many filters and so many input channels.
    max_groups : int, default 64
        No layer gets more groups.
    depthwise : bool, default False
        Allow G = F = C.
    restarts : int, default 0
        Of :func:`nni_gconv.groupconv.partition.partition`: 0 finds nearly the same scores in
        milliseconds.
    gathers : int, default 0
        Gathers of channels that each grouped layer is timed with: 0, 1 or 2. For latency only.
    fill : float, default 0
        Share of the budget that the network has to use, in one of its measures, if a choice does:
        most score may leave a part of it where options cost much. For the exact strategy; not for
        latency.
    seed : int, default 0
        Same seed, same result (a budget of latency: as far as the measurement is the same).
    progress : callable, optional
        Called with the partitions that are done and their number.

    Returns
    -------
    GroupSearch
        Layer -> G, never over the budget, with a proven bound.

    Raises
    ------
    BudgetError
        The budget cannot be reached; the message says what can.
    ConfigError
        Another argument is wrong.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1))
    >>> entries = [{"op_types": ["Conv2d"]}]
    >>> found = search_groups(net, torch.zeros(1, 3, 8, 8), entries, {"params": 0.6, "macs": 0.7})
    >>> dict(found), found.params, found.macs, found.gap
    ({'1': 4, '2': 1}, 520, 12128, 0.0)
    """
    limits = parse_budget(budget)
    for what, value, allowed in (("strategy", strategy, STRATEGIES), ("score", score, SCORES)):
        if value not in allowed:
            raise ConfigError(unknown_name(what, value, allowed))
    if isinstance(fill, bool) or not isinstance(fill, int | float) or not 0 <= fill <= 1:
        raise ConfigError(f"fill: {fill!r} is not allowed (a number from 0 to 1)")
    if (score == "error") != (covariances is not None):
        raise ConfigError(
            "score: 'error' needs covariances= of what the layers read, and no other score looks "
            "at them"
        )
    timed = "latency" in limits
    if timed and strategy != "exact":
        raise ConfigError(f"strategy {strategy!r}: knows budgets of params and macs; use 'exact'")
    timer = LayerTimer(model, dummy_input) if timed else None
    rules = ChoiceRules(max_groups, min_factor, depthwise)
    costs = cost_tables(model, dummy_input, config_list, rules, timer=timer, gathers=gathers)
    check_reachable(costs, limits)
    effort: dict[str, Any] = {"restarts": restarts, "seed": seed, "progress": progress}
    if covariances is None:
        tables = score_tables(costs, model, criterion, **effort)
    else:
        tables = error_tables(costs, model, covariances, criterion, **effort)
    ratio = None
    if timed:
        solution, ratio = solve_timed(
            model, dummy_input, tables, limits, score=score, gathers=gathers
        )
    else:
        solution = solve_tables(tables, limits, strategy=strategy, score=score, fill=fill)
    options = zip(tables.layers, solution.chosen, strict=True)
    return GroupSearch(
        {table.name: table.choices[option] for table, option in options},
        solution.value,
        solution.bound,
        *counts(tables, solution.chosen),
        ratio,
        tables.dense,
        limits,
        strategy,
        score,
        tables.layers,
        tables.skipped,
    )
