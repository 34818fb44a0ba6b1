"""``nni-gconv fetch``: bring home what the trials of an experiment wrote on other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.output import note, print_json


def fetch(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="Folder or id of an experiment.")
    ],
    everything: Annotated[
        bool,
        typer.Option("--all", help="With checkpoints and the weights between stages."),
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="Folder to put them in (default: the experiment's own)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came as JSON.")] = False,
) -> None:
    """Fetch results, small networks and logs of trials that ran on other machines.

    `create` does so by itself; this is for experiments of `nnictl create`, and for machines that
    were lost and are back. What is here already is left alone, and what was cut off goes on.
    """
    from nni_gconv.compat import read_config
    from nni_gconv.errors import ConfigError
    from nni_gconv.experiment import find_experiment
    from nni_gconv.remote import FetchReport, RemoteError, connect, fetch_machine, machines_of

    folder = find_experiment(experiment)
    machines = machines_of(read_config(folder).get("trainingService"))
    if not machines:
        raise ConfigError(f"{folder.name} ran on this machine alone: nothing is elsewhere")
    total = FetchReport()
    failed = []
    for machine in machines:
        try:
            with connect(machine) as connection:
                report = fetch_machine(
                    connection, folder.name, into or folder, everything=everything
                )
        except RemoteError as error:
            failed.append(str(error))
            continue
        note(
            f"{machine.label}: {report.files} files, {report.size / 1024**2:.1f} MiB; "
            f"{len(report.trials)} trials are here"
        )
        total.add(report)
    if as_json:
        print_json(
            {
                "files": total.files,
                "bytes": total.size,
                "trials": sorted(total.trials),
                "left_there": total.skipped,
                "problems": total.problems + failed,
                "folder": str(into or folder),
            }
        )
    if failed or total.problems:
        raise RemoteError("; ".join(failed + total.problems))
    note(f"see them with: nni-gconv report {into or folder}")
