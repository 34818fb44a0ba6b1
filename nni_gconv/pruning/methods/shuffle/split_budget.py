"""What splitting layers again and again costs and saves, and which splits meet a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition import nested_counts
from nni_gconv.groupconv.search import (
    ChoiceRules,
    GroupRequest,
    GroupTables,
    LayerTable,
    LayerTimer,
    check_reachable,
    cost_tables,
    group_requests,
    solve_tables,
    solve_timed,
)
from nni_gconv.pruning.methods.shuffle.hierarchy import bisect_threshold, deepest, saved_share
from nni_gconv.pruning.selection.near_limit import CLOSE, nearest_choice

Kept = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class NestedRules(ChoiceRules):
    """Group counts that a layer is split in one after the other, each a divisor of the next.

    Attributes
    ----------
    fewest : bool, default False
        Leave the layer with the fewest groups that its request allows.

    Examples
    --------
    >>> layer, request = nn.Conv2d(48, 24, 1), GroupRequest(max_group_size=8)
    >>> NestedRules().choices(layer, request), NestedRules().allowed(layer, request)
    ((1, 2, 4, 8, 24), (8, 24))
    >>> NestedRules(fewest=True).choices(layer, request)
    (1, 2, 4, 8)
    """

    further: bool = False
    fewest: bool = False

    def choices(self, layer: nn.Module, request: GroupRequest) -> tuple[int, ...]:
        """All counts on the way, from 1; none if the request cannot be met."""
        allowed = self.allowed(layer, request)
        if not allowed:
            return ()
        if request.num_groups is not None:
            return nested_counts(request.num_groups)
        return tuple(count for count in self._chain(layer) if count <= allowed[-1])

    def allowed(self, layer: nn.Module, request: GroupRequest) -> tuple[int, ...]:
        """Return the counts that the layer may be left with."""
        found = super().choices(layer, request)
        if request.num_groups is not None:
            return found
        nested = tuple(count for count in self._chain(layer) if count in found)
        return nested[:1] if self.fewest else nested

    def _chain(self, layer: nn.Module) -> tuple[int, ...]:
        every = super().choices(layer, GroupRequest())
        return tuple(count for count in nested_counts(every[-1]) if count in every)


class SplitBudget:
    """Chooses how many groups each layer is left with.

    Parameters
    ----------
    tables : GroupTables
        Counts and costs of each layer, by :class:`NestedRules`.
    allowed : mapping of str to tuple of int
        Of the counts of each layer those it may be left with, ascending.
    budget : mapping of str to float, optional
        ``params``, ``macs`` and ``latency``, fractions of dense up to 1, counts above. Without
        one every layer is left with the most groups it is allowed.

    Attributes
    ----------
    counts : dict of str to tuple of int
        Group counts of each layer, from 1.
    skipped : dict of str to str
        Layers that cannot be grouped, each with the reason.

    Raises
    ------
    BudgetError
        The most groups cost too much.
    """

    def __init__(
        self,
        tables: GroupTables,
        allowed: Mapping[str, tuple[int, ...]],
        budget: Mapping[str, float] | None,
    ) -> None:
        self._tables, self._allowed, self._budget = tables, allowed, budget
        self.skipped = tables.skipped
        if budget is not None:
            check_reachable(tables, budget)
        self._wanted = {m: w for m, w in self._savings().items() if w > 0}
        self.counts = {table.name: table.choices for table in tables.layers}

    @classmethod
    def of_model(
        cls,
        model: nn.Module,
        dummy_input: Any,
        config_list: Sequence[Mapping[str, Any]],
        budget: Mapping[str, float] | None,
        *,
        max_groups: int = 64,
    ) -> SplitBudget:
        """Count, and for a budget of latency time, the layers that a config_list selects.

        Parameters
        ----------
        model, dummy_input
            The dense model, unwrapped, and what it is called on.
        config_list : sequence of mapping
            With ``num_groups`` and ``max_group_size``, see
            :func:`nni_gconv.groupconv.search.requests.group_requests`.
        budget : mapping of str to float, optional
            As for the class.
        max_groups : int, default 64
            No layer is split further.
        """
        requests, _ = group_requests(model, config_list)
        for name, request in requests.items() if budget is None else ():
            if request == GroupRequest():
                raise ConfigError(
                    f"config_list: {name} has neither num_groups nor max_group_size, and there is "
                    "no budget"
                )
        rules = NestedRules(max_groups, fewest=budget is None)
        timer = LayerTimer(model, dummy_input) if "latency" in (budget or {}) else None
        tables = cost_tables(model, dummy_input, config_list, rules, timer=timer)
        modules = dict(model.named_modules(remove_duplicate=False))
        names = [table.name for table in tables.layers]
        allowed = {name: rules.allowed(modules[name], requests[name]) for name in names}
        return cls(tables, allowed, budget)

    def _savings(self) -> dict[str, float]:
        """What has to be saved of each measure."""
        layers = self._tables.layers
        if self._budget is None:
            most = (t.params[t.choices.index(self._allowed[t.name][-1])] for t in layers)
            return {"params": sum(t.params[0] for t in layers) - sum(most)}
        wanted: dict[str, float] = {}
        for measure, value in self._budget.items():
            if measure == "latency":
                wanted[measure] = (1 - value) * sum(t.dense_milliseconds or 0.0 for t in layers)
            else:
                dense = getattr(self._tables.dense, measure)
                wanted[measure] = dense - math.floor(value * dense if value <= 1 else value)
        return wanted

    def splits(self, kept: Kept, loss: float) -> dict[str, int]:
        """Splits that each layer bears when it may lose so much of its score."""
        return {name: deepest(kept[name], loss) for name in self.counts}

    def saved(self, splits: Mapping[str, int]) -> float:
        """Share that is saved of what has to be, of the measure that is worst off; 1 is enough.

        Latency is that of the layers one by one.
        """
        return min(self._saved_of_wanted(splits).values(), default=1.0)

    def _saved_of_wanted(self, splits: Mapping[str, int]) -> dict[str, float]:
        shares = {}
        for measure, wanted in self._wanted.items():
            field = "milliseconds" if measure == "latency" else measure
            costs = [getattr(table, field) for table in self._tables.layers]
            chosen = [splits[table.name] for table in self._tables.layers]
            shares[measure] = saved_share(wanted, costs, chosen)
        return shares

    def by_threshold(self, kept: Kept) -> dict[str, int]:
        """Group counts by one loss that every layer may suffer, the least that meets the budget.

        What it saves beyond the budget undoes last splits, of the layers that lose most first.
        Where more than 1 % of the budget is left over, a few splits of some layers are exchanged
        for splits of others, see :func:`~nni_gconv.pruning.selection.near_limit.nearest_choice`.
        """
        if self._budget is None:
            return self._most()
        loss = bisect_threshold(lambda loss: self._saved_by(self._bearing(kept, loss)), 1.0)
        found = self._undo_spare(self._bearing(kept, loss), kept)
        return self._nearer(found, kept)

    def _bearing(self, kept: Kept, loss: float) -> dict[str, int]:
        """The most groups of each layer that it may have and that lose no more than `loss`."""
        found = {}
        for name, splits in self.splits(kept, loss).items():
            within = [c for c in self._allowed[name] if c <= self.counts[name][splits]]
            found[name] = within[-1] if within else self._allowed[name][0]
        return found

    def _saved_by(self, groups: Mapping[str, int]) -> float:
        return self.saved({n: self.counts[n].index(count) for n, count in groups.items()})

    def _undo_spare(self, groups: dict[str, int], kept: Kept) -> dict[str, int]:
        """Undo last splits that the budget does not need, where most is lost first."""
        found = dict(groups)
        left = {n: kept[n][self.counts[n].index(count)] for n, count in found.items()}
        for name in sorted(found, key=left.__getitem__):
            fewer = [c for c in self._allowed[name] if c < found[name]]
            if fewer and self._saved_by({**found, name: fewer[-1]}) >= 1:
                found[name] = fewer[-1]
        return found

    def _nearer(self, found: dict[str, int], kept: Kept) -> dict[str, int]:
        """Exchange splits for others that leave less of the budget over."""
        names = list(found)
        choices = [self._allowed[name] for name in names]
        lost = [
            (1 - kept[name][self.counts[name].index(count)], i, k)
            for i, name in enumerate(names)
            for k, count in enumerate(choices[i][1:])
        ]
        dense = {m: getattr(self._tables.dense, m) for m in self._wanted}

        def groups(taken: Sequence[int]) -> dict[str, int]:
            return {n: choices[i][k] for i, (n, k) in enumerate(zip(names, taken, strict=True))}

        def cost(taken: Sequence[int]) -> float:
            """Cost over the budget's, of the measure that is worst off."""
            splits = {n: self.counts[n].index(count) for n, count in groups(taken).items()}
            shares = self._saved_of_wanted(splits)
            return max(
                (dense[m] - share * self._wanted[m]) / (dense[m] - self._wanted[m])
                for m, share in shares.items()
            )

        start = [choices[i].index(found[name]) for i, name in enumerate(names)]
        if not self._wanted or cost(start) > 1:
            return found
        order = {(i, k): place for place, (_, i, k) in enumerate(sorted(lost))}
        most = [len(allowed) - 1 for allowed in choices]
        return groups(nearest_choice(start, most, cost, 1.0, order=order))

    def by_search(
        self, kept: Kept, totals: Mapping[str, float], model: nn.Module | None, dummy_input: Any
    ) -> dict[str, int]:
        """Group counts that keep the most score within the budget.

        Parameters
        ----------
        kept : mapping of str to tuple of float
            Share of the score that each count of each layer keeps.
        totals : mapping of str to float
            Score of each layer.
        model, dummy_input
            The dense model and what it is timed on, for a budget of latency.
        """
        if self._budget is None:
            return self._most()
        layers = tuple(
            self._options(table, kept[table.name], totals[table.name])
            for table in self._tables.layers
        )
        tables = replace(self._tables, layers=layers)
        if model is not None and "latency" in self._budget:
            solution, _ = solve_timed(model, dummy_input, tables, self._budget)
        else:
            solution = solve_tables(tables, self._budget, fill=CLOSE)
        return {t.name: t.choices[o] for t, o in zip(layers, solution.chosen, strict=True)}

    def _most(self) -> dict[str, int]:
        return {name: self._allowed[name][-1] for name in self.counts}

    def _options(self, table: LayerTable, kept: tuple[float, ...], total: float) -> LayerTable:
        """Return a layer's table of the counts it may be left with."""
        places = [table.choices.index(count) for count in self._allowed[table.name]]
        times = table.milliseconds
        return replace(
            table,
            choices=tuple(table.choices[i] for i in places),
            params=tuple(table.params[i] for i in places),
            macs=tuple(table.macs[i] for i in places),
            milliseconds=None if times is None else tuple(times[i] for i in places),
            retained=tuple(kept[i] * total for i in places),
            total=total,
        )
