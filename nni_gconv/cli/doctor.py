"""``nni-gconv doctor MODEL``: what pruning would do to a network, before any training."""

from __future__ import annotations

from typing import Annotated

import typer

from nni_gconv.cli.output import parse_overrides, print_json
from nni_gconv.cli.profile import parse_shape

__all__ = ["doctor"]


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="resnet56, torchvision:resnet50 or mypkg.module:factory."
        ),
    ],
    shape: Annotated[
        str | None,
        typer.Option("--input", metavar="NxCxHxW", help="Input; default: the model's usual one."),
    ] = None,
    ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of channels that is priced.")
    ] = 0.5,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--option", metavar="KEY=VALUE", help="Option of the model; may be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Trace a network without training: what is coupled, what stays and why, what a ratio costs."""
    size = None if shape is None else parse_shape(shape)
    options = parse_overrides(option or [])

    import torch

    from nni_gconv.diagnose import diagnose
    from nni_gconv.training.zoo import create_model, input_size

    size = size or (1, *input_size(model))
    found = diagnose(create_model(model, **options), torch.zeros(size), ratio=ratio)
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    console = Console()
    console.print(found.table(model))
    for line in found.lines():
        console.print(line, highlight=False)
