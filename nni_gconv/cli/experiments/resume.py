"""``nni-gconv resume``: go on with an experiment that was stopped, killed or cut off."""

from __future__ import annotations

from typing import Annotated

import typer

from nni_gconv.cli.experiments.create import (
    AsJson,
    Concurrency,
    KeepUI,
    MaxFailed,
    Port,
    report_outcome,
)


def resume(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="Id or folder of the experiment.")
    ],
    port: Port = None,
    keep_ui: KeepUI = False,
    concurrency: Concurrency = None,
    max_trials: Annotated[
        int | None,
        typer.Option(
            "--max-trials",
            min=1,
            help="New maxTrialNumber; the trials that have ended count.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Let failed trials go on too (those that a signal ended always do).",
        ),
    ] = False,
    as_json: AsJson = False,
    max_failed: MaxFailed = 5,
    all_interfaces: Annotated[
        bool,
        typer.Option(
            "--all-interfaces",
            help="Let the web server listen on every network interface, as nnictl does.",
        ),
    ] = False,
) -> None:
    """Resume an experiment that was stopped or killed, and wait for its end.

    Trials that have ended are kept and count; the others go on from their last epoch, under their
    old ids. As safe as `create`: on 127.0.0.1 only, watched to the end.
    """
    from nni_gconv.experiment import ExperimentView, resume_experiment

    outcome = resume_experiment(
        experiment,
        port=port,
        concurrency=concurrency,
        max_trials=max_trials,
        retry_failed=retry_failed,
        loopback=not all_interfaces,
        keep_ui=keep_ui,
        max_failed=max_failed,
        view=ExperimentView.on_stderr(),
    )
    raise typer.Exit(report_outcome(outcome, as_json=as_json))
