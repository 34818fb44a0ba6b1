"""``nni-gconv init``: a commented recipe for a network and images of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nni_gconv.cli.networks.model_options import ModelName, ModelOptions, NoImport
from nni_gconv.cli.networks.pixel_scale import scaled_to_fit
from nni_gconv.cli.networks.shrink import data_settings
from nni_gconv.cli.output import note
from nni_gconv.errors import ConfigError
from nni_gconv.yaml12 import parse_overrides


def init(
    model: ModelName,
    data: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|NAME",
            help="Images: a folder of CLASS/*.png, one with train/ and val/, or digits, "
            "cifar10=FOLDER and other data sets by name.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(help="Trained weights; without them the recipe trains the network first."),
    ] = None,
    macs: Annotated[float, typer.Option(min=0.001, max=1.0, help="What may be left.")] = 0.5,
    recipe: Annotated[Path, typer.Option("--out", help="Recipe to write.")] = Path("recipe.yml"),
    experiment: Annotated[
        bool, typer.Option("--experiment", help="Write experiment.yml for NNI beside it.")
    ] = False,
    option: ModelOptions = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    no_import: NoImport = False,
) -> None:
    """Look at a network and at images, and write a commented recipe that runs."""
    given = parse_overrides(option or [])
    other = recipe.parent / "experiment.yml"
    for file in (recipe, *([other] if experiment else [])):
        if file.exists() and not force:
            raise ConfigError(f"{file} is there already: give --out another name, or --force")
    text, described = _written(model, data, weights, macs, given, recipe)

    from nni_gconv.files import write_text

    recipe.parent.mkdir(parents=True, exist_ok=True)
    note(described)
    write_text(recipe, text)
    note(f"saved {recipe}; next: nni-gconv run {recipe}")
    if experiment:
        from nni_gconv.cli.networks.draft import experiment as written

        write_text(other, written(recipe.name))
        note(f"saved {other}; or: nni-gconv create {other}")


def _written(
    model: str,
    data: str,
    weights: str | None,
    macs: float,
    options: dict[str, Any],
    recipe: Path,
) -> tuple[str, str]:
    import torch

    from nni_gconv.cli.networks.draft import Draft
    from nni_gconv.recipe import check_runs
    from nni_gconv.training.data import load_data
    from nni_gconv.training.zoo import create_model, list_models

    settings = data_settings(data)
    bundle = load_data(settings)
    defaults: dict[str, Any] = {"num_classes": bundle.num_classes}
    if model in list_models():
        defaults["in_channels"] = bundle.input_shape[0]
    network = create_model(model, weights=weights, **{**defaults, **options}).eval()
    example = torch.zeros(1, *bundle.input_shape)
    check_runs(network, example, model_name=model, data_name=data, num_classes=bundle.num_classes)
    said = ""
    if weights is not None:
        settings, said = scaled_to_fit(network, settings)
    section: dict[str, Any] = {"name": settings.name}
    if said and settings.normalize is not None:
        section["normalize"] = settings.normalize.model_dump(mode="json")
    if settings.root is not None:
        section["root"] = _from(recipe.parent, settings.root)
    described = "; ".join(filter(None, (bundle.description, said)))
    count = len(bundle.train)
    section["batch_size"] = max(2, min(128, 2 ** max(1, (count // 8).bit_length() - 1)))
    if settings.name == "imagefolder":
        section["workers"] = 2
    draft = Draft(
        model=model,
        data=section,
        weights=None if weights is None else _from(recipe.parent, weights),
        options=options,
        budget=macs,
        images=count,
        described=described,
        file=recipe.name,
    )
    return draft.text(network, example), described


def _from(folder: Path, path: str) -> str:
    """Write a path as it is seen from the recipe's folder, where that is not far."""
    if not Path(path).expanduser().exists() or path.startswith("~") or Path(path).is_absolute():
        return path
    return os.path.relpath(path, folder)
