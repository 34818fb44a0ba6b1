"""``nni-gconv compare``: two small networks side by side, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.output import note, print_json

_SOURCE = "A compact.safetensors, a run's folder, or EXPERIMENT/TRIAL."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SOURCE)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the layers of both (png, svg, pdf)."),
    ] = None,
) -> None:
    """Show the widths, groups, parameters and MACs of two small networks of one architecture.

    Nothing is built or executed: all of it stands in the files.
    """
    from nni_gconv.report import compare_networks, plot_layers, read_network

    found = compare_networks(read_network(a), read_network(b))
    if plot is not None:
        note(f"saved {plot_layers([found.a, found.b], plot)}")
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    # Into a pipe or file: as wide as it needs to be.
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(len(found.a.label), len(found.b.label)) + 200)
    console.print(found.table())
