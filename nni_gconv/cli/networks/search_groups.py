"""``nni-gconv search-groups MODEL``: how many groups each layer gets within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nni_gconv.cli.networks.model_options import (
    InputShape,
    ModelName,
    ModelOptions,
    NoImport,
    build_model,
)
from nni_gconv.cli.output import note, print_json
from nni_gconv.display import advancing
from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_CONVS = ("Conv1d", "Conv2d", "Conv3d")


def search_groups(  # noqa: PLR0913, PLR0917 - one argument an option
    model: ModelName,
    budget: Annotated[
        list[str],
        typer.Option(
            metavar="MEASURE=VALUE",
            help="params, macs or latency: a fraction of dense up to 1, above it a count; may be "
            "repeated, and all hold.",
        ),
    ],
    shape: InputShape = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Outputs.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights to load; without, scores are of random weights.")
    ] = None,
    option: ModelOptions = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Regular expression of layers to leave; repeatable."),
    ] = None,
    criterion: Annotated[str, typer.Option(help="l2 or l1: norm of the kernels.")] = "l2",
    strategy: Annotated[
        str, typer.Option(help="exact, or max_cost: the paper's local search.")
    ] = "exact",
    score: Annotated[
        str,
        typer.Option(help="relative: mean of layers, geometric: their product, absolute: sum."),
    ] = "relative",
    min_factor: Annotated[
        int, typer.Option(min=1, help="Fewest filters and input channels of a group.")
    ] = 1,
    max_groups: Annotated[int, typer.Option(min=1, help="Most groups of a layer.")] = 64,
    depthwise: Annotated[bool, typer.Option("--depthwise", help="Allow G = F = C.")] = False,
    gathers: Annotated[
        int, typer.Option(min=0, max=2, help="Gathers each grouped layer is timed with.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the group counts as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    no_import: NoImport = False,
) -> None:
    """Choose the group count of each convolution: the highest retained score within a budget.

    A budget of params alone leaves early layers dense, which have few parameters and most of the
    work: give macs too.
    """
    limits = parse_budgets(budget)

    from nni_gconv.groupconv.search import search_groups as search

    network, example = build_model(model, shape, option, num_classes=num_classes, weights=weights)
    config_list = [{"op_types": _kinds(network, model), "exclude_op_names_re": exclude or []}]
    with advancing("partitions", last_line=True) as progress:
        try:
            found = search(
                network,
                example,
                config_list,
                limits,
                criterion=criterion,
                strategy=strategy,  # type: ignore[arg-type]  # checked there
                score=score,  # type: ignore[arg-type]
                min_factor=min_factor,
                max_groups=max_groups,
                depthwise=depthwise,
                gathers=gathers,
                progress=progress,
            )
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            size = tuple(example.shape)
            raise ConfigError(f"{model} does not run on an input of {size}: {reason}") from None
    if output is not None:
        note(f"saved {found.save(output)}")
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console

    Console().print(found.table(model))


def parse_budgets(items: Sequence[str]) -> dict[str, float]:
    """Read ``measure=number`` options.

    Examples
    --------
    >>> parse_budgets(["params=0.5", "macs=2e8"])
    {'params': 0.5, 'macs': 200000000.0}
    """
    budgets: dict[str, float] = {}
    for item in items:
        measure, _, text = item.partition("=")
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(
                f"--budget {item}: expected a measure and a number such as params=0.5"
            ) from None
        if measure in budgets:
            raise ConfigError(f"--budget {item}: {measure} has a budget already")
        budgets[measure] = value
    return budgets


def _kinds(network: nn.Module, name: str) -> list[str]:
    kinds = sorted({type(m).__name__ for m in network.modules()} & set(_CONVS))
    if not kinds:
        raise ConfigError(f"{name}: has no convolution")
    return kinds
