"""``nni-gconv optimize``: the quickest equal form of a small network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.networks.model_options import Architecture, InputShape, ModelOptions, NoImport
from nni_gconv.cli.output import note, print_json


def optimize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A compact.safetensors.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write; default: the same file."),
    ] = None,
    model: Architecture = None,
    shape: InputShape = None,
    option: ModelOptions = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; the forms suit it.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="For timing whole networks.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    no_import: NoImport = False,
) -> None:
    """Choose the quickest equal form of every layer on this machine, and write them to the file.

    The weights in the file stay; with it stands how each layer is computed. The network is no
    slower than before, and gives the same numbers.
    """
    from nni_gconv.artefact import read_plan, save_compact
    from nni_gconv.cli.networks.compact_file import load_small
    from nni_gconv.inference import optimize as quickest
    from nni_gconv.inference import report_of
    from nni_gconv.profiling import with_batch

    network, example = load_small(file, model, shape, option)
    found = read_plan(file)
    note(f"timing the layers of {file} with batches of {batch}, then whole networks")
    fast = quickest(network, with_batch(example, batch), threads=threads, max_seconds=seconds)
    report = report_of(fast)
    target = output or file
    save_compact(fast, target, recipe=found["recipe"], layers=found["layers"])
    note(f"saved {target}")
    if as_json:
        print_json(report.to_dict())
        return
    from rich.console import Console

    Console().print(report.table(str(target)))
