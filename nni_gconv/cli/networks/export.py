"""``nni-gconv export``: a small network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nni_gconv.cli.networks.model_options import (
    InputShape,
    ModelOptions,
    NoImport,
    parse_shape,
)
from nni_gconv.cli.output import note, parse_overrides
from nni_gconv.errors import ConfigError


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A compact.safetensors.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="*.onnx or *.pt2")],
    model: Annotated[
        str | None,
        typer.Option(help="The architecture; default: the one of the recipe in the file."),
    ] = None,
    shape: InputShape = None,
    option: ModelOptions = None,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Fold batch norms into convolutions.")
    ] = False,
    no_import: NoImport = False,
) -> None:
    """Write ONNX or torch's .pt2 and compare the file with the network before it is kept."""
    size = None if shape is None else parse_shape(shape)
    options = parse_overrides(option or [])

    import torch

    from nni_gconv.artefact import load_compact, read_plan
    from nni_gconv.export import export_model
    from nni_gconv.training.zoo import ModelSettings, input_size

    found = read_plan(file)
    plan, recipe = found["plan"], found["recipe"]
    if model is None:
        _check_named(file, recipe)
    named: dict[str, Any] = (
        {"name": model} if model is not None else {**recipe["model"], "weights": None}
    )
    named["options"] = {**named.get("options", {}), **options}
    try:
        settings = ModelSettings.model_validate(named)
    except ValueError as error:
        raise ConfigError(f"{file}: the model in its recipe is damaged: {error}") from None
    channels = _first_channels(plan)
    size = size or (1, channels, *input_size(settings.name)[1:])
    defaults = _zoo_defaults(settings.name, plan, channels)
    network = load_compact(file, lambda: settings.build(**defaults))
    export_model(network, torch.zeros(size), target, fold_bn=fold_bn)
    note(f"saved {target}")


def _check_named(file: Path, recipe: Any) -> None:
    """A file may come from anywhere: it names a network of ours or torchvision's, or none."""
    from nni_gconv.training.zoo import list_models

    found = recipe.get("model") if isinstance(recipe, dict) else None
    name = found.get("name") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{file} names no architecture: give --model")
    if name not in list_models() and not name.startswith("torchvision:"):
        raise ConfigError(
            f"{file} names {name!r}, which is no network of the zoo or of torchvision; a file may "
            "not name code: give --model, if you know it"
        )


def _first_channels(plan: dict) -> int:
    first = next((m for m in plan["modules"].values() if "in_channels" in m["attrs"]), None)
    return first["attrs"]["in_channels"] if first else 3


def _zoo_defaults(name: str, plan: dict, channels: int) -> dict[str, int]:
    """Arguments that a recipe takes from its data: input channels and classes."""
    from nni_gconv.training.zoo import list_models

    last = [m for m in plan["modules"].values() if "out_features" in m["attrs"]]
    defaults = {"num_classes": last[-1]["attrs"]["out_features"]} if last else {}
    return {**defaults, "in_channels": channels} if name in list_models() else defaults
