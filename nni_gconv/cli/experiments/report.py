"""``nni-gconv report``: the trials of experiments or runs as a table, pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nni_gconv.cli.output import note, print_json, print_trials

if TYPE_CHECKING:
    from nni_gconv.report import TrialRow


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
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write all of it as one page that opens offline."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw accuracy against cost (png, svg, pdf)."),
    ] = None,
    cost: Annotated[
        str, typer.Option(help="Axis of --plot: macs_ratio, params_ratio or latency_ratio.")
    ] = "macs_ratio",
    layers: Annotated[
        Path | None,
        typer.Option(
            "--layers",
            metavar="FILE",
            help="Widths and groups of each layer: a picture (png, svg, pdf) of the networks on "
            "the Pareto front, six at most, or csv or json of all.",
        ),
    ] = None,
) -> None:
    """Show the trials of experiments and runs, finished, running or broken.

    Accuracies are those of the validation split; delta is in points above dense; params, MACs and
    latency are small over dense. How many trials are in which state, and what went wrong in those
    that failed, stands below the table.
    """
    from nni_gconv.report import (
        collect,
        json_rows,
        plot_trials,
        state_lines,
        write_csv,
        write_html,
    )

    rows = collect(experiments)
    if csv is not None:
        note(f"saved {write_csv(rows, csv)}")
    if plot is not None:
        note(f"saved {plot_trials(rows, plot, cost=cost)}")
    if layers is not None:
        note(f"saved {_write_layers(rows, layers)}")
    if html is not None:
        note(f"saved {write_html(rows, html, title=', '.join(experiments))}")
    if as_json:
        print_json(json_rows(rows))
    elif rows:
        print_trials(rows)
        typer.echo("\n".join(state_lines(rows)))
    else:
        note("no trials yet")


def _write_layers(rows: Sequence[TrialRow], path: Path) -> Path:
    """Write the layers of the trials that have a small network, in the format asked for."""
    from nni_gconv.errors import ConfigError, NniGconvError
    from nni_gconv.files import output_file
    from nni_gconv.report import (
        layer_records,
        pareto_front,
        plot_layers,
        read_network,
        write_layers_csv,
    )

    suffix = path.suffix.lower()
    tables = suffix in (".csv", ".json")
    front = (pareto_front(rows) or list(rows))[:6]
    networks, reason = [], "no trial has come so far"
    for row in rows if tables else front:
        label = row.trial if tables else " ".join(filter(None, (row.method, row.trial)))
        if row.folder is None:
            continue
        try:
            networks.append(read_network(row.folder, label))
        except NniGconvError as error:
            reason = str(error)
    if not networks:
        raise ConfigError(f"--layers: no small network to read: {reason}")
    if suffix == ".csv":
        return write_layers_csv(networks, path)
    if suffix == ".json":
        with output_file(path) as temporary:
            temporary.write_text(json.dumps(layer_records(networks), indent=2) + "\n")
        return path
    return plot_layers(networks, path)
