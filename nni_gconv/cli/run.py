"""``nni-gconv run``: one recipe, one trial; under NNI it is the trial command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from nni_gconv.cli.networks.model_options import NoImport
from nni_gconv.cli.output import note, print_json
from nni_gconv.cli.signals import KEPT, interruptible
from nni_gconv.yaml12 import parse_overrides


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
    width = max(map(len, result.metrics))
    for name, value in result.metrics.items():
        typer.echo(f"{name:{width}} {value:.6g}")
    note(f"kept in {result.output}")


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
