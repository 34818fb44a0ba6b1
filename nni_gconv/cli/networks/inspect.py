"""``nni-gconv inspect``: what is in a file of a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nni_gconv.cli.output import print_json


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A compact.safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show the plan in a file: every layer's type, widths and shapes; nothing is loaded."""
    from nni_gconv.artefact import read_plan

    found = read_plan(file)
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    plan = found["plan"]
    table = Table("layer", "type", "widths", "tensors", title=f"{plan['model']} in {file.name}")
    for name, layer in plan["modules"].items():
        table.add_row(name, layer["type"], _attributes(layer["attrs"]), _shapes(layer["tensors"]))
    console = Console()
    console.print(table)
    for block, steps in plan.get("blocks", {}).items():
        console.print(
            f"{block}: without its branch, what is left is {', '.join(steps) or 'its input'}"
        )
    made = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    console.print(f"written with {made}")
    recipe = found["recipe"]
    if recipe:
        pruned = recipe.get("prune") or {}
        console.print(f"recipe {recipe.get('name')}: {pruned.get('method')} {pruned.get('budget')}")


def _attributes(attributes: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in attributes.items())


def _shapes(tensors: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, s)) or '()'}" for name, s in tensors.items())
