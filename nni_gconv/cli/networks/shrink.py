"""``nni-gconv shrink``: a network of one's own and some images in, a small file out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nni_gconv.cli.networks.model_options import ModelName, ModelOptions, NoImport, parse_shape
from nni_gconv.cli.networks.pixel_scale import scaled_to_fit
from nni_gconv.cli.output import note, print_json
from nni_gconv.cli.signals import interruptible
from nni_gconv.errors import ConfigError
from nni_gconv.yaml12 import parse_overrides

if TYPE_CHECKING:
    from torch import nn

    from nni_gconv.training.data import DataSettings, Loaders

DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FOLDER|NAME",
        help="Images: a folder of CLASS/*.png, one with train/ and val/, or digits, cifar10=FOLDER "
        "and other data sets by name.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn at random.")]


def shrink(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="File to write, *.safetensors.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Trained weights: .safetensors or a torch state dict (no pickle is read), "
            "torchvision's DEFAULT, timm's pretrained, a folder of PyTorchModelHubMixin."
        ),
    ] = None,
    macs: Annotated[float | None, typer.Option(help="What may be left: 0.5, or a count.")] = None,
    params: Annotated[float | None, typer.Option(help="The same of parameters.")] = None,
    latency: Annotated[float | None, typer.Option(help="Share of the time, measured here.")] = None,
    groups: Annotated[
        str | None, typer.Option(metavar="N|FILE|search", help="Make group convolutions.")
    ] = None,
    data: DataName = None,
    images: Annotated[int, typer.Option(min=2, help="Training images that are looked at.")] = 1024,
    criterion: Annotated[
        str | None, typer.Option(help="Method; default: the best there is.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Module whose layers keep all outputs; repeat it.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--input", metavar="NxCxHxW", help="Input; default: an image of --data."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Outputs; default: the classes of --data.")
    ] = None,
    option: ModelOptions = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line a stage.")] = False,
    no_import: NoImport = False,
) -> None:
    """Make a network smaller without a recipe: choose channels, remove them, check, save.

    With --data the weights that are left are fitted to the dense network's outputs, and both
    networks are measured on the test images.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: expected a name that ends in .safetensors")
    budget = {"macs": macs, "params": params, "latency": latency, "groups": _groups(groups)}
    with interruptible("nothing was written; run it again"):
        _shrink(
            _Network(model, weights, shape, num_classes, option or [], seed),
            data, images, {**budget, "criterion": criterion, "keep": keep or []},
            out, as_json, quiet,
        )  # fmt: skip


@dataclass(frozen=True)
class _Network:
    """How the network is named."""

    name: str
    weights: str | None
    shape: str | None
    num_classes: int | None
    options: list[str]
    seed: int


def _shrink(
    named: _Network,
    data: str | None,
    images: int,
    asked: dict[str, Any],
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    from nni_gconv.artefact import save_compact
    from nni_gconv.shrinking import shrink as work

    settings, loaders = _images(data, named.seed, quiet)
    model, example, recipe = _built(named, loaders)
    if settings is not None and named.weights is not None:
        fitting, said = scaled_to_fit(model, settings)
        if said:
            note(f"note: {said}")
            settings, loaders = fitting, _loaders(fitting, named.seed)
    calibration = None if loaders is None else _Lazy(loaders, images)
    if calibration is None and not quiet:
        note("note: with --data FOLDER the weights left would be fitted to your images")
    small, report = work(model, example, calibration=calibration, progress=not quiet, **asked)
    found = report.to_dict()
    if loaders is not None:
        found["accuracy"] = _accuracies(model, small, loaders)
    if settings is not None:
        recipe["data"] = settings.model_dump(mode="json", exclude_unset=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_compact(small.eval(), out, recipe=recipe)
    if as_json:
        print_json({**found, "file": str(out)})
        return
    typer.echo(str(report))
    if loaders is not None:
        words = ", ".join(f"{which} {value:.4f}" for which, value in found["accuracy"].items())
        typer.echo(f"test accuracy: {words}")
    note(f"saved {out}")
    note(f"load it: load_compact({str(out)!r}, {_maker(named)})")


class _Lazy:
    """Calibration images that are read when they are asked for, no more than wanted."""

    def __init__(self, loaders: Loaders, images: int) -> None:
        self.loaders, self.images = loaders, images

    def __iter__(self) -> Any:
        left = self.images
        for pixels, labels in self.loaders.plain:
            yield pixels[:left], labels[:left]
            left -= len(pixels)
            if left <= 0:
                return


def _images(data: str | None, seed: int, quiet: bool) -> tuple[DataSettings | None, Loaders | None]:
    """Read what --data names."""
    if data is None:
        return None, None
    from nni_gconv.training.data import load_data, make_loaders

    settings = data_settings(data)
    bundle = load_data(settings, seed=seed)
    if not quiet:
        note(f"shrink: {bundle.description}")
    return settings, make_loaders(bundle, settings, seed=seed, device="cpu")


def _loaders(settings: DataSettings, seed: int) -> Loaders:
    from nni_gconv.training.data import load_data, make_loaders

    return make_loaders(load_data(settings, seed=seed), settings, seed=seed, device="cpu")


def data_settings(text: str) -> DataSettings:
    """Read ``images/``, ``digits`` or ``cifar10=~/data``.

    Raises
    ------
    ConfigError
        There is no such folder and no such data set.
    """
    from typing import get_args

    from pydantic import ValidationError

    from nni_gconv.errors import unknown_name
    from nni_gconv.training.data import DataName as Names
    from nni_gconv.training.data import DataSettings as Settings

    name, equals, root = text.partition("=")
    names = get_args(Names)
    folder = Path(text).expanduser()
    if not equals and (folder.is_dir() or name not in names):
        if not folder.is_dir():
            said = unknown_name("data set", text, names, "--data")
            raise ConfigError(f"{said}; and there is no folder {text}")
        name, root = "imagefolder", text
    try:
        return Settings(name=name, root=root or None, batch_size=32)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(f"--data {text}: {error.errors()[0]['msg']}") from error


def _built(named: _Network, loaders: Loaders | None) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Build the network and its input; what a file has to say of it to be exported."""
    import torch

    from nni_gconv.training import seed_everything
    from nni_gconv.training.zoo import create_model, input_size, list_models

    size = None if named.shape is None else parse_shape(named.shape)
    options = parse_overrides(named.options)
    classes = named.num_classes
    if loaders is not None:
        size = size or (1, *loaders.input_shape)
        classes = classes or loaders.num_classes
        if named.name in list_models():
            options.setdefault("in_channels", size[1])
    seed_everything(named.seed)
    model = create_model(named.name, num_classes=classes, weights=named.weights, **options)
    if size is None:
        try:
            size = (1, *input_size(named.name))
        except ConfigError as error:
            raise ConfigError(
                f"--input: is needed, such as --input 1x3x224x224, or --data ({error})"
            ) from error
    if named.weights is None:
        note("note: without --weights the network has what its constructor gives it")
    described: dict[str, Any] = {"name": named.name, "options": options}
    if classes is not None:
        described["num_classes"] = classes
    return model.eval(), torch.zeros(size), {"name": Path(named.name).name, "model": described}


def _accuracies(dense: nn.Module, small: nn.Module, loaders: Loaders) -> dict[str, float]:
    from nni_gconv.training import evaluate

    both = {"dense": dense, "small": small}
    return {k: evaluate(m, loaders.test, device="cpu").accuracy for k, m in both.items()}


def _groups(text: str | None) -> Any:
    if text is None or text == "search":
        return text
    return int(text) if text.isdigit() else text


def _maker(named: _Network) -> str:
    """Write how the dense architecture is made."""
    if ":" in named.name and not named.name.startswith(("timm:", "torchvision:")):
        return named.name.partition(":")[2]
    return f'lambda: create_model("{named.name}", ...)'
