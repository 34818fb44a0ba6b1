"""``nni-gconv run``: one recipe, one trial; under NNI it is the trial command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nni_gconv.cli.networks.model_options import NoImport
from nni_gconv.cli.output import note, print_json
from nni_gconv.cli.signals import KEPT, interruptible
from nni_gconv.yaml12 import parse_overrides

if TYPE_CHECKING:
    from nni_gconv.display import Table
    from nni_gconv.recipe import TrialResult


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yml", help="The recipe.")],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            metavar="KEY=VALUE",
            help="Replace a value of the recipe, such as prune.budget.macs=0.5; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to (under NNI: the trial's own).")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Go on where an earlier run in this folder stopped."
        ),
    ] = True,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take so many free GPUs; with more than one, torchrun trains on all of them. "
            "Under NNI the recipe's `gpus` does the same.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    no_import: NoImport = False,
) -> None:
    """Run a recipe: train, prune, speed up, fine-tune, export, measure."""
    overrides = parse_overrides(override or [])
    again = _arguments(recipe, override or [], output, True, quiet, as_json)
    again += ["--gpus", str(gpus)] if gpus else []
    words = f"{KEPT}nni-gconv run {shlex.join(again)}" if _speaks() else ""
    with interruptible(words):
        _run(recipe, override or [], overrides, output, resume, gpus, quiet, as_json)


def _speaks() -> bool:
    """Tell whether this is the one of torchrun's processes that speaks, or there is no torchrun."""
    from nni_gconv.slots import TAKEN_VARIABLE

    # The process that took the GPUs and started torchrun speaks itself.
    ours = "RANK" in os.environ and TAKEN_VARIABLE in os.environ
    return os.environ.get("RANK", "0") == "0" and not ours


def _run(
    recipe: Path,
    override: list[str],
    overrides: dict[str, Any],
    output: Path | None,
    resume: bool,
    gpus: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from nni_gconv.recipe import load_recipe, run_recipe, run_torchrun, torchrun_size
    from nni_gconv.slots import gpu_slots

    loaded = load_recipe(recipe, overrides)
    processes = torchrun_size(loaded, gpus)
    if processes:
        again = _arguments(recipe, override, output, resume, quiet, as_json)
        code = run_torchrun(loaded, processes, again)
        if code is not None:
            raise typer.Exit(code)
    with gpu_slots(1 if gpus == 1 else 0, required=loaded.device == "cuda"):
        result = run_recipe(recipe, output=output, overrides=overrides, resume=resume, quiet=quiet)
    if os.environ.get("RANK", "0") != "0":
        return  # one of the processes of torchrun speaks
    if as_json:
        print_json(result.to_dict())
        return
    typer.echo(str(_table(result)))
    note(f"kept in {result.output}")
    small = result.output / "compact.safetensors"
    if small.is_file():
        note(f"the small network: {small}")


def _table(result: TrialResult) -> Table:
    """Return the dense and the small network side by side."""
    from nni_gconv.display import Table as OurTable

    table, metrics = OurTable(), result.metrics
    table.add_column("", no_wrap=True)
    for head in ("dense", "small", "left"):
        table.add_column(head, justify="right")
    # The objective of a recipe is what NNI is told; else that is the accuracy.
    if metrics["default"] != metrics["accuracy"]:
        table.add_row("objective", "", f"{metrics['default']:.4f}")
    for part, found in (("val", metrics), ("test", result.test)):
        both = [found.get(name) for name in ("accuracy_dense", "accuracy")]
        words = ["" if value is None else f"{value:.4f}" for value in both]
        table.add_row(f"{part} accuracy", *words)
    for name, title in (("macs", "MACs"), ("params", "parameters")):
        counts = [f"{found[name]:,.0f}" for found in (result.dense, metrics)]
        table.add_row(title, *counts, f"{metrics[f'{name}_ratio']:.3f}")
    for row in result.latency:
        times = [f"{row[which]:.3f} ms" for which in ("dense_ms", "small_ms")]
        left = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        table.add_row(f"latency, batch {row['batch_size']}, {row['backend']}", *times, left)
    return table


def _arguments(
    recipe: Path,
    override: list[str],
    output: Path | None,
    resume: bool,
    quiet: bool,
    as_json: bool,
) -> list[str]:
    """Write the arguments of this call again, for the processes that torchrun starts."""
    words = [str(recipe), "--resume" if resume else "--no-resume"]
    for text in override:
        words += ["-o", text]
    if output is not None:
        words += ["--output", str(output)]
    return words + ["--quiet"] * quiet + ["--json"] * as_json
