"""What came out of an experiment: rows, tables and pictures.

Begin with :func:`collect`, which reads experiments and runs (`sources`) as rows; `table`, `plot`
and `html` show them. `layers` and `compare` show networks layer by layer, `trial_curves` joins the
sensitivity curves of trials. Knows of experiment, analysis and artefact; tables need no torch.

Examples
--------
>>> from nni_gconv.report import collect, plain_table
>>> print(plain_table(collect("~/nni-experiments/_latest")))  # doctest: +SKIP
"""

from __future__ import annotations

from nni_gconv.report.collect import TrialRow, collect, pareto_front
from nni_gconv.report.compare import Comparison, compare_networks
from nni_gconv.report.html import write_html
from nni_gconv.report.layers import (
    LayerSize,
    Network,
    layer_records,
    read_network,
    write_layers_csv,
)
from nni_gconv.report.plot import plot_trials
from nni_gconv.report.plot_blocks import plot_blocks
from nni_gconv.report.plot_layers import plot_layers
from nni_gconv.report.spread import spread_table
from nni_gconv.report.table import json_rows, plain_table, rich_table, state_lines, write_csv
from nni_gconv.report.trial_curves import curve_tables, join_curves

__all__ = [
    "Comparison",
    "LayerSize",
    "Network",
    "TrialRow",
    "collect",
    "compare_networks",
    "curve_tables",
    "join_curves",
    "json_rows",
    "layer_records",
    "pareto_front",
    "plain_table",
    "plot_blocks",
    "plot_layers",
    "plot_trials",
    "read_network",
    "rich_table",
    "spread_table",
    "state_lines",
    "write_csv",
    "write_html",
    "write_layers_csv",
]
