"""What came out of an experiment: rows, tables and pictures.

Examples
--------
>>> from nni_gconv.report import collect, plain_table
>>> print(plain_table(collect("~/nni-experiments/_latest")))  # doctest: +SKIP
"""

from __future__ import annotations

from nni_gconv.report.blocks import plot_blocks
from nni_gconv.report.collect import TrialRow, collect, pareto_front
from nni_gconv.report.plot import plot_trials
from nni_gconv.report.table import json_rows, plain_table, rich_table, write_csv

__all__ = [
    "TrialRow",
    "collect",
    "json_rows",
    "pareto_front",
    "plain_table",
    "plot_blocks",
    "plot_trials",
    "rich_table",
    "write_csv",
]
