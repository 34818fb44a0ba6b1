"""``nni-gconv create``: start any NNI experiment safely and wait for its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nni_gconv.cli.networks.model_options import NoImport
from nni_gconv.cli.networks.sensitivity import print_joined
from nni_gconv.cli.output import note, print_json, print_trials, write_report
from nni_gconv.errors import NniGconvError
from nni_gconv.yaml12 import parse_overrides

if TYPE_CHECKING:
    from nni_gconv.experiment import Outcome
    from nni_gconv.report import TrialRow

Port = Annotated[
    int | None, typer.Option("--port", help="Port of the web UI; by default a free one is taken.")
]
KeepUI = Annotated[bool, typer.Option("--keep-ui", help="Leave the web UI running after the end.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Folder to keep experiments in, each in one of its own (default: ~/nni-experiments, "
        "or what the file says).",
    ),
]
Concurrency = Annotated[int | None, typer.Option("--concurrency", min=1, help="Trials at a time.")]
MaxFailed = Annotated[
    int,
    typer.Option(
        "--max-failed", min=1, help="Give up when the first so many trials have all failed."
    ),
]


def _key_value(given: list[str] | None) -> list[str] | None:
    """Refuse at once what is no KEY=VALUE; trials get the texts."""
    parse_overrides(given or [])
    return given


Override = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--override",
        metavar="KEY=VALUE",
        callback=_key_value,
        help="Value of the recipe for every trial, such as train.epochs=5; may be repeated.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the trials as JSON; progress is on stderr.")
]


@dataclass(frozen=True)
class LaunchOptions:
    """The options that ``create`` and ``quickstart`` share."""

    port: int | None = None
    keep_ui: bool = False
    output: Path | None = None
    concurrency: int | None = None
    json: bool = False
    loopback: bool = True
    max_failed: int = 5
    gpus: int | None = None
    max_trials: int | None = None
    overrides: tuple[str, ...] = ()


def create(
    experiment: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT.yml", help="NNI experiment file, as for nnictl create."),
    ],
    port: Port = None,
    keep_ui: KeepUI = False,
    output: Output = None,
    concurrency: Concurrency = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="GPUs each trial takes, instead of the recipe's `gpus`; on this machine as many "
            "trials run at a time as there is room for. 0: trials leave GPUs alone.",
        ),
    ] = None,
    max_trials: Annotated[
        int | None, typer.Option("--max-trials", min=1, help="Instead of maxTrialNumber.")
    ] = None,
    override: Override = None,
    as_json: AsJson = False,
    check: Annotated[bool, typer.Option("--check", help="Only check; start nothing.")] = False,
    max_failed: MaxFailed = 5,
    all_interfaces: Annotated[
        bool,
        typer.Option(
            "--all-interfaces",
            help="Let the web server listen on every network interface, as nnictl does. It has no "
            "login, serves any file of yours and runs what it is sent.",
        ),
    ] = False,
    no_import: NoImport = False,
) -> None:
    """Start an NNI experiment and wait for its end.

    Checks the file first, keeps NNI's web server on this machine (127.0.0.1), shows progress, and
    says how it ended; the same file also works with `nnictl create`.
    """
    options = LaunchOptions(
        port, keep_ui, output, concurrency, as_json, not all_interfaces, max_failed, gpus,
        max_trials, tuple(override or ()),
    )  # fmt: skip
    if check:
        from nni_gconv.experiment import made_ready, preflight

        plan = preflight(
            experiment,
            port=port,
            concurrency=concurrency,
            gpus=gpus,
            output=output,
            loopback=options.loopback,
            max_trials=max_trials,
            overrides=options.overrides,
        )
        plan = made_ready(plan)
        for text in plan.notes:
            note(f"note: {text}")
        note(f"{experiment}: nothing wrong found")
        return
    raise typer.Exit(launch_and_report(experiment, options))


def launch_and_report(experiment: Path, options: LaunchOptions) -> int:
    """Run an experiment to its end, then print and save its trials.

    Parameters
    ----------
    experiment : Path
        Experiment file.
    options : LaunchOptions
        Those of the command.

    Returns
    -------
    int
        Exit code: 0 only if every trial succeeded.
    """
    from nni_gconv.experiment import ExperimentView, run_experiment

    outcome = run_experiment(
        experiment,
        port=options.port,
        concurrency=options.concurrency,
        gpus=options.gpus,
        output=options.output,
        loopback=options.loopback,
        keep_ui=options.keep_ui,
        max_failed=options.max_failed,
        max_trials=options.max_trials,
        overrides=options.overrides,
        view=ExperimentView.on_stderr(),
    )
    return report_outcome(outcome, as_json=options.json)


def report_outcome(outcome: Outcome, *, as_json: bool) -> int:
    """Print and save the trials of an experiment that has ended, and return the exit code.

    Parameters
    ----------
    outcome : Outcome
        How it ended.
    as_json : bool
        Print JSON instead of a table.

    Returns
    -------
    int
        Exit code: 0 only if every trial succeeded.
    """
    from nni_gconv.compat import read_config
    from nni_gconv.experiment import Ending
    from nni_gconv.report import collect, curve_tables, json_rows

    rows = collect(outcome.folder) if outcome.trials else []
    if rows:
        name = read_config(outcome.folder).get("experimentName")
        title = f"{name} ({outcome.experiment_id})" if name else outcome.experiment_id
        for file in write_report(rows, outcome.folder / "report", title):
            note(f"saved {file}")
    if as_json:
        print_json(json_rows(rows))
    elif curve_tables(rows):
        print_curves(outcome, rows)
    elif rows:
        print_trials(rows)
    # How to go on after Ctrl-C has been said.
    if not outcome.ok and outcome.ending is not Ending.INTERRUPTED:
        note(f"error: {' '.join(outcome.message.split())}")
    return outcome.exit_code


def print_curves(outcome: Outcome, rows: Sequence[TrialRow]) -> None:
    """Print the joined curves of trials that measured sensitivity, and what shows them again."""
    try:
        found = print_joined(outcome.folder)
    except NniGconvError as error:
        print_trials(rows)
        note(f"error: {error}")
        return
    tolerance = f"--tolerance {found.together.tolerance:g}"
    note(f"this table again: nni-gconv sensitivity {outcome.experiment_id} {tolerance}")
