"""``nni-gconv doctor``: what pruning would do to a network, or whether an experiment will run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.model_options import InputShape, ModelName, ModelOptions, build_model
from nni_gconv.cli.output import print_json

__all__ = ["doctor"]


def doctor(
    model: ModelName,
    shape: InputShape = None,
    ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of channels that is priced.")
    ] = 0.5,
    option: ModelOptions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Trace a network without training: what is coupled, what stays and why, what a ratio costs.

    Given an experiment file (*.yml): check it, and every machine it names, without starting it.
    """
    if Path(model).suffix in (".yml", ".yaml"):
        from nni_gconv.cli.doctor_experiment import doctor_experiment

        raise typer.Exit(doctor_experiment(Path(model), as_json=as_json))
    network, example = build_model(model, shape, option)

    from nni_gconv.diagnose import diagnose

    found = diagnose(network, example, ratio=ratio)
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    console = Console()
    console.print(found.table(model))
    for line in found.lines():
        console.print(line, highlight=False, soft_wrap=True)
