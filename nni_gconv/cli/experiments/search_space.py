"""``nni-gconv search-space``: the group counts of every layer as NNI's search space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.output import note
from nni_gconv.errors import ConfigError
from nni_gconv.yaml12 import parse_overrides


def search_space(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yml", help="A recipe with prune.method gconv.")
    ],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            metavar="KEY=VALUE",
            help="Replace a value of the recipe, such as data.root=~/data; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write there (default: standard output)."),
    ] = None,
    max_groups: Annotated[int, typer.Option(min=1, help="Most groups of a layer.")] = 64,
    min_factor: Annotated[
        int, typer.Option(min=1, help="Fewest filters and input channels of a group.")
    ] = 1,
) -> None:
    """Write the search space of a recipe's layers: group counts, and what each costs and loses.

    For `searchSpaceFile` of an experiment with the tuner nni_gconv.tuner.ParetoTuner; NNI's own
    tuners take it too.
    """
    from nni_gconv.files import write_text
    from nni_gconv.tuning import recipe_space

    overrides = parse_overrides(override or [])
    space, skipped = recipe_space(recipe, overrides, max_groups=max_groups, min_factor=min_factor)
    lines = [f"  {json.dumps(name)}: {json.dumps(spec)}" for name, spec in space.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    for name, reason in skipped.items():
        note(f"{name} stays as it is: {reason}")
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        write_text(output.expanduser(), text)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
    note(f"saved {output}")
