"""``nni-gconv report``: the trials of experiments or runs as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.output import note, print_json, print_trials

__all__ = ["report"]


def report(
    experiments: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPERIMENT...",
            help="Folder or id of an experiment, a run's folder, or a folder of runs.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the trials as JSON.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write them as CSV too.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw accuracy against cost (png, svg, pdf)."),
    ] = None,
    cost: Annotated[
        str, typer.Option(help="Axis of --plot: macs_ratio, params_ratio or latency_ratio.")
    ] = "macs_ratio",
) -> None:
    """Show the trials of experiments and runs, finished, running or broken.

    Accuracies are those of the validation split; params, MACs and latency are small over dense.
    """
    from nni_gconv.report import collect, json_rows, plot_trials, write_csv

    rows = collect(experiments)
    if csv is not None:
        note(f"saved {write_csv(rows, csv)}")
    if plot is not None:
        note(f"saved {plot_trials(rows, plot, cost=cost)}")
    if as_json:
        print_json(json_rows(rows))
    elif rows:
        print_trials(rows)
    else:
        note("no trials yet")
