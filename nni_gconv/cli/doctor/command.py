"""``nni-gconv doctor``: the installation, a network, or an experiment before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.completion import offer_models
from nni_gconv.cli.doctor.installation import doctor_installation
from nni_gconv.cli.networks.model_options import (
    InputShape,
    ModelOptions,
    NoImport,
    build_model,
)
from nni_gconv.cli.output import print_json
from nni_gconv.errors import ConfigError


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|EXPERIMENT.yml]",
            help="resnet56, torchvision:resnet50, timm:NAME or mypkg.module:factory; or an "
            "experiment's file; without it the installation is looked at.",
            shell_complete=offer_models,
        ),
    ] = None,
    shape: InputShape = None,
    ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of channels that is priced.")
    ] = 0.5,
    option: ModelOptions = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Of an experiment: copy this package to the machines that lack it, and install it "
            "there by pip, with nni, torch and torchvision as they are here.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    no_import: NoImport = False,
) -> None:
    """Look at the installation, trace a network without training, or check an experiment.

    Without MODEL: versions, node, ports, GPU, disk; each problem with how to fix it. With
    MODEL: what is coupled, what stays and why, what a ratio costs. With an experiment file (*.yml):
    the file and every machine it names, without starting it.
    """
    experiment = model is not None and Path(model).suffix in (".yml", ".yaml")
    if fix and not experiment:
        raise ConfigError("--fix installs on the machines of an experiment: give its file")
    if model is None:
        raise typer.Exit(doctor_installation(as_json=as_json))
    if experiment:
        from nni_gconv.cli.doctor.experiment import doctor_experiment

        raise typer.Exit(doctor_experiment(Path(model), as_json=as_json, fix=fix))
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
