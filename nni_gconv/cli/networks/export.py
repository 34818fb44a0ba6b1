"""``nni-gconv export``: a small network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.networks.model_options import (
    Architecture,
    InputShape,
    ModelOptions,
    NoImport,
)
from nni_gconv.cli.output import note


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A compact.safetensors.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="*.onnx or *.pt2")],
    model: Architecture = None,
    shape: InputShape = None,
    option: ModelOptions = None,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Fold batch norms into convolutions.")
    ] = False,
    no_import: NoImport = False,
) -> None:
    """Write ONNX or torch's .pt2 and compare the file with the network before it is kept."""
    from nni_gconv.cli.networks.compact_file import load_small
    from nni_gconv.export import export_model

    network, example = load_small(file, model, shape, option)
    export_model(network, example, target, fold_bn=fold_bn)
    note(f"saved {target}")
