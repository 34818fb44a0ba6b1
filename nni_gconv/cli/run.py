"""``nni-gconv run``: one recipe, one trial; under NNI it is the trial command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.output import note, parse_overrides, print_json

__all__ = ["run"]


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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a recipe: train, prune, speed up, fine-tune, export, measure."""
    overrides = parse_overrides(override or [])

    from nni_gconv.recipe import run_recipe

    result = run_recipe(recipe, output=output, overrides=overrides, resume=resume, quiet=quiet)
    if as_json:
        print_json(result.to_dict())
        return
    for name, value in result.metrics.items():
        typer.echo(f"{name:16} {value:.6g}")
    note(f"kept in {result.output}")
