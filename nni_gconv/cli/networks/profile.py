"""``nni-gconv profile``: what a network costs, layer by layer."""

from __future__ import annotations

from typing import Annotated

import typer

from nni_gconv.cli.networks.model_options import (
    InputShape,
    ModelName,
    ModelOptions,
    NoImport,
    build_model,
)
from nni_gconv.cli.output import print_json
from nni_gconv.errors import ConfigError


def profile(
    model: ModelName,
    shape: InputShape = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Outputs.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to load.")] = None,
    option: ModelOptions = None,
    latency: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Also time this batch size; may be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for --latency.")] = 1,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What runs it for --latency: eager, compile, onnxruntime or openvino; may be "
            "repeated. Default: eager.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    no_import: NoImport = False,
) -> None:
    """Show parameters, multiply-accumulates, memory and time of a network, layer by layer."""
    if backend and not latency:
        raise ConfigError("--backend: give --latency N, the batch size to time, too")
    network, example = build_model(model, shape, option, num_classes=num_classes, weights=weights)

    from nni_gconv.profiling import profile as measure

    try:
        found = measure(
            network,
            example,
            batch_sizes=latency or (),
            threads=threads,
            backends=backend or ("eager",),
        )
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"{model} does not run on an input of {tuple(example.shape)}: {reason}"
        ) from None
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    Console().print(found.table(model))
