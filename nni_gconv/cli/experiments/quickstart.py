"""``nni-gconv quickstart``: the experiment that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.experiments.create import (
    AsJson,
    Concurrency,
    KeepUI,
    LaunchOptions,
    Output,
    Override,
    Port,
    launch_and_report,
)
from nni_gconv.cli.output import note


def quickstart(
    port: Port = None,
    keep_ui: KeepUI = False,
    output: Output = None,
    concurrency: Concurrency = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Do everything so many times and show the spread; the experiment is written to "
            "runs/quickstart-seeds-N first.",
        ),
    ] = 1,
    override: Override = None,
    as_json: AsJson = False,
) -> None:
    """Compare all methods on a small network under NNI: minutes, on CPUs, without a download.

    Fourteen trials: second order, five methods and NNI's L1 norm, two budgets of MACs, one dense
    network trained for all of them, weights fitted to it and fine-tuned with it as teacher. Ends
    with a table and a picture; every trial's small network stays on disk.
    """
    from nni_gconv.experiment import experiment_file, with_seeds

    file = experiment_file("quickstart")
    if seeds > 1:
        file = with_seeds(file, Path("runs") / f"quickstart-seeds-{seeds}", seeds)
        note(f"written {file}")
    options = LaunchOptions(
        port, keep_ui, output, concurrency, as_json, overrides=tuple(override or ())
    )
    raise typer.Exit(launch_and_report(file, options))
