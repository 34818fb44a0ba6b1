"""What the commands that take a network share: how it is named, its input, its options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from nni_gconv.cli.completion import offer_models
from nni_gconv.errors import ConfigError
from nni_gconv.own_code import NO_IMPORT
from nni_gconv.yaml12 import parse_overrides

if TYPE_CHECKING:
    from torch import Tensor, nn

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="resnet56, torchvision:resnet50, timm:NAME or mypkg.module:factory.",
        shell_complete=offer_models,
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The architecture; default: the one of the recipe in the file.",
        shell_complete=offer_models,
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option("--input", metavar="NxCxHxW", help="Input; default: the model's usual one."),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--option", metavar="KEY=VALUE", help="Option of the model; may be repeated."
    ),
]


def _forbid(wanted: bool) -> bool:
    if wanted:
        os.environ[NO_IMPORT] = "1"  # the processes that this one starts obey it too
    return wanted


NoImport = Annotated[
    bool,
    typer.Option(
        "--no-import",
        callback=_forbid,
        is_eager=True,
        help="Refuse whatever names code of one's own, package.module:name.",
    ),
]


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


def build_model(
    name: str,
    shape: str | None,
    options: list[str] | None,
    *,
    num_classes: int | None = None,
    weights: str | None = None,
) -> tuple[nn.Module, Tensor]:
    """Build a network and an input of zeros as the options say; mistakes are told first."""
    size = None if shape is None else parse_shape(shape)
    given = parse_overrides(options or [])

    import torch

    from nni_gconv.training.zoo import create_model, input_size

    size = size or (1, *input_size(name))
    model = create_model(name, num_classes=num_classes, weights=weights, **given)
    return model, torch.zeros(size)
