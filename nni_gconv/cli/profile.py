"""``nni-gconv profile``: what a network costs, layer by layer."""

from __future__ import annotations

from typing import Annotated

import typer

from nni_gconv.cli.output import parse_overrides, print_json
from nni_gconv.errors import ConfigError

__all__ = ["profile"]


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape such as ``1x3x32x32``.

    Examples
    --------
    >>> parse_shape("1x3x32x32")
    (1, 3, 32, 32)
    """
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--input {text}: expected positive sizes such as 1x3x32x32")
    return tuple(int(part) for part in parts)


def profile(
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
    num_classes: Annotated[int | None, typer.Option(min=1, help="Outputs.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to load.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--option", metavar="KEY=VALUE", help="Option of the model; may be repeated."
        ),
    ] = None,
    latency: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Also time this batch size; may be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for --latency.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show parameters, multiply-accumulates, memory and time of a network, layer by layer."""
    size = None if shape is None else parse_shape(shape)
    options = parse_overrides(option or [])

    import torch

    from nni_gconv.profiling.costs import profile as measure
    from nni_gconv.training.zoo import create_model, input_size

    size = size or (1, *input_size(model))
    network = create_model(model, num_classes=num_classes, weights=weights, **options)
    try:
        found = measure(network, torch.zeros(size), batch_sizes=latency or (), threads=threads)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(f"{model} does not run on an input of {size}: {reason}") from None
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    Console().print(found.table(model))
