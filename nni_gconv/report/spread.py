"""Trials that differ in nothing but their seed: mean and spread of each."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from rich.box import SIMPLE_HEAD

from nni_gconv.display import Table
from nni_gconv.report.collect import TrialRow
from nni_gconv.report.table import format_budget

_SEED = "seed"


def repeated(rows: Sequence[TrialRow]) -> list[list[TrialRow]]:
    """Group finished trials whose parameters differ in the seed alone; single ones are left out.

    Examples
    --------
    >>> rows = [TrialRow(str(n), "succeeded", method="fpgm", accuracy=0.9, parameters={"seed": n})
    ...         for n in range(3)]
    >>> [len(group) for group in repeated(rows)], repeated(rows[:1])
    ([3], [])
    """
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.accuracy is not None and _SEED in row.parameters:
            others = {key: row.parameters[key] for key in sorted(row.parameters) if key != _SEED}
            groups.setdefault(repr((row.method, others)), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def spread_table(rows: Sequence[TrialRow]) -> Table | None:
    """Show mean and sample standard deviation over seeds; None where no trial was repeated.

    Parameters
    ----------
    rows : sequence of TrialRow
        Of an experiment whose search space has a ``seed``.

    Returns
    -------
    Table or None
        A line for each set of parameters: the small network's accuracy and its distance to the
        dense one of the same seed (percent and points), costs as small over dense.
    """
    groups = repeated(rows)
    if not groups:
        return None
    title = "over seeds: mean ± standard deviation"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in ("method", "budget"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seeds", "acc. %", "delta", "params", "MACs", "latency"):
        table.add_column(heading, justify="right")
    for group in groups:
        table.add_row(
            group[0].method or "",
            format_budget(group[0].budget),
            str(len(group)),
            _spread([row.accuracy for row in group], 100, "{:.2f}"),
            _spread([row.delta for row in group], 100, "{:+.2f}"),
            _spread([row.params_ratio for row in group], 1, "{:.3f}"),
            _spread([row.macs_ratio for row in group], 1, "{:.3f}"),
            _spread([row.latency_ratio for row in group], 1, "{:.3f}"),
        )
    return table


def _spread(values: Sequence[float | None], scale: float, form: str) -> str:
    known = [scale * value for value in values if value is not None]
    if len(known) < 2:
        return "".join(map(form.format, known))
    return f"{form.format(mean(known))}±{form.replace('+', '').format(stdev(known))}"
