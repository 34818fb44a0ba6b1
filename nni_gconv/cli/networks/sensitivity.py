"""``nni-gconv sensitivity``: what each set of channels is worth, and how many may go."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nni_gconv.cli.completion import offer_models
from nni_gconv.cli.networks.model_options import NoImport
from nni_gconv.cli.output import note, print_json
from nni_gconv.cli.signals import KEPT, interruptible
from nni_gconv.display import advancing
from nni_gconv.errors import ConfigError
from nni_gconv.yaml12 import parse_overrides

if TYPE_CHECKING:
    from nni_gconv.analysis import Sensitivity


def sensitivity(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE.yml|MODEL|EXPERIMENT",
            help="A recipe, for its network, weights, data and layers; or a model, with "
            "-o model.weights=FILE -o data.name=cifar10 -o data.root=FOLDER; or the folder or id "
            "of an NNI experiment whose trials measured a set each: their curves are joined.",
            shell_complete=offer_models,
        ),
    ],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            metavar="KEY=VALUE",
            help="Replace a value of the recipe, such as data.root=~/data; may be repeated.",
        ),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="What goes first: l1, l2, fpgm, gamma or random.")
    ] = "l1",
    ratios: Annotated[
        str,
        typer.Option(
            metavar="RATIOS", help="Shares to remove: first:last:step, or a list 0.25,0.5,0.75."
        ),
    ] = "0:0.95:0.05",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Loss of accuracy, a fraction of 1, that a set must stay below (default: 0.001; "
            "of an experiment, that of its trials)."
        ),
    ] = None,
    stop_below: Annotated[
        float | None, typer.Option(help="End a curve that falls below this accuracy.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="Option of the criterion's method, such as coupling=max; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random order.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to (default: runs/NAME/sensitivity).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    no_import: NoImport = False,
) -> None:
    """Remove more and more channels of one coupled set at a time and measure the accuracy.

    Validation images decide, nothing is fine-tuned. Writes the curves as CSV and picture, and the
    largest harmless ratios as a recipe's prune section. A run that was killed goes on.
    """
    if _is_experiment(source):
        print_joined(source, output, tolerance, as_json)
        return
    shares, options = parse_ratios(ratios), parse_overrides(option or [], flag="--option")
    recipe, overrides = _recipe(source, parse_overrides(override or []))

    from nni_gconv.analysis import TOLERANCE, trial_sensitivity

    again = f"{KEPT}nni-gconv {shlex.join(sys.argv[1:])}"
    bar = advancing("points", enabled=not quiet, last_line=True)
    with interruptible(again), bar as progress:
        found, files = trial_sensitivity(
            recipe,
            overrides=overrides,
            output=output,
            criterion=criterion,
            quiet=quiet,
            ratios=shares,
            tolerance=TOLERANCE if tolerance is None else tolerance,
            stop_below=stop_below,
            options=options,
            seed=seed,
            progress=progress,
        )
    for file in files:
        note(f"saved {file}")
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    Console().print(found.table())
    typer.echo(found.summary())


def _is_experiment(source: str) -> bool:
    kept = Path.home() / "nni-experiments" / source
    return any((place / "db").is_dir() for place in (Path(source).expanduser(), kept))


def print_joined(
    source: str | Path,
    output: Path | None = None,
    tolerance: float | None = None,
    as_json: bool = False,
) -> Sensitivity:
    """Join the curves of an experiment's trials, save them and print them."""
    from nni_gconv.report import join_curves

    found, files = join_curves(source, output=output, tolerance=tolerance)
    for file in files:
        note(f"saved {file}")
    if as_json:
        print_json({key: value for key, value in found.to_dict().items() if key != "together"})
        return found
    from rich.console import Console

    Console().print(found.table())
    return found


def parse_ratios(text: str) -> list[float]:
    """Read ``first:last:step``, the last one included, or numbers with commas between them.

    Examples
    --------
    >>> parse_ratios("0:0.3:0.1"), parse_ratios("0.25,0.5")
    ([0.0, 0.1, 0.2, 0.3], [0.25, 0.5])
    """
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (float(part) for part in text.split(":"))
        count = round((last - first) / step, 6)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"--ratios {text}: expected first:last:step such as 0:0.95:0.05, or 0.25,0.5"
        ) from None
    if not 0 <= count <= 1000:
        raise ConfigError(f"--ratios {text}: no step leads from {first:g} to {last:g}")
    return [round(first + i * step, 9) for i in range(int(count) + 1)]


def _recipe(source: str, overrides: dict[str, Any]) -> tuple[Path | dict[str, Any], dict[str, Any]]:
    """Tell a file from a model's name, for which a recipe is made."""
    if Path(source).suffix in (".yml", ".yaml") or Path(source).is_file():
        return Path(source), overrides
    if not any(key.partition(".")[0] == "data" for key in overrides):
        raise ConfigError(
            f"{source}: on which images? Give -o data.name=cifar10 -o data.root=FOLDER, or a recipe"
        )
    return {"name": source.rpartition(":")[2], "model": {"name": source}}, overrides
