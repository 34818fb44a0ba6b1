"""A small network's file on the command line: which architecture it is of, and on what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.artefact import load_compact, read_plan
from nni_gconv.cli.networks.model_options import parse_shape
from nni_gconv.errors import ConfigError
from nni_gconv.training.zoo import ModelSettings, input_size, list_models
from nni_gconv.yaml12 import parse_overrides


def load_small(
    file: Path, model: str | None, shape: str | None, options: list[str] | None
) -> tuple[nn.Module, Tensor]:
    """Load a file as it is without forms for inference, and make an input of zeros.

    Parameters
    ----------
    file : Path
        A ``compact.safetensors``.
    model, shape, options
        As on the command line; without them what the recipe in the file says.
    """
    size = None if shape is None else parse_shape(shape)
    given = parse_overrides(options or [])
    found = read_plan(file)
    plan, recipe = found["plan"], found["recipe"]
    if model is None:
        _check_named(file, recipe)
    named: dict[str, Any] = (
        {"name": model} if model is not None else {**recipe["model"], "weights": None}
    )
    named["options"] = {**named.get("options", {}), **given}
    try:
        settings = ModelSettings.model_validate(named)
    except ValueError as error:
        raise ConfigError(f"{file}: the model in its recipe is damaged: {error}") from None
    channels = _first_channels(plan)
    size = size or (1, channels, *input_size(settings.name)[1:])
    defaults = _zoo_defaults(settings.name, plan, channels)
    network = load_compact(file, lambda: settings.build(**defaults), optimized=False)
    return network, torch.zeros(size)


def _check_named(file: Path, recipe: Any) -> None:
    """A file may come from anywhere: it names a network of ours or torchvision's, or none."""
    found = recipe.get("model") if isinstance(recipe, dict) else None
    name = found.get("name") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{file} names no architecture: give --model")
    known = name.startswith(("torchvision:", "timm:")) and "hf-hub:" not in name
    if name not in list_models() and not known:
        raise ConfigError(
            f"{file} names {name!r}, which is no network of the zoo, of torchvision or of timm; "
            "a file may not name code: give --model, if you know it"
        )


def _first_channels(plan: dict) -> int:
    first = next((m for m in plan["modules"].values() if "in_channels" in m["attrs"]), None)
    return first["attrs"]["in_channels"] if first else 3


def _zoo_defaults(name: str, plan: dict, channels: int) -> dict[str, int]:
    """Arguments that a recipe takes from its data: input channels and classes."""
    last = [m for m in plan["modules"].values() if "out_features" in m["attrs"]]
    defaults = {"num_classes": last[-1]["attrs"]["out_features"]} if last else {}
    return {**defaults, "in_channels": channels} if name in list_models() else defaults
