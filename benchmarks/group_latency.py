"""Time of one 3x3 convolution dense, grouped, and grouped between gathers, on this machine.

    python benchmarks/group_latency.py --plot docs/images/group_latency.png      # two minutes
    python benchmarks/group_latency.py --device cuda --batch 1 64

Prints Markdown: ratios to the dense layer, run in turn with it, fastest runs, each layer in its
quickest equal form (`nni_gconv.groupconv.forms`). The layers are of an
ImageNet ResNet: C = F = 64 at 56x56 to 512 at 7x7. "1 gather" stands in front of the layer, with
"2 gathers" another behind it, each an `index_select` in an order as scattered as any.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from partition import machine, table
from torch import nn

from nni_gconv.display import COLOURS, picture, picture_path
from nni_gconv.groupconv.search import LayerTimer

SIDES = {64: 56, 128: 28, 256: 14, 512: 7}
GROUPS = (2, 4, 8, 16, 32, 64)
KINDS = ("group convolution", "1 gather", "2 gathers")
Ratios = dict[tuple[int, int], list[list[float]]]


def measure(args: argparse.Namespace) -> tuple[Ratios, dict[tuple[int, int], float]]:
    """Ratios by (batch, C): one list a kind, one number a G; and dense milliseconds."""
    ratios: Ratios = {}
    dense = {}
    for batch in args.batch:
        for channels, side in SIDES.items():
            model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
            example = torch.zeros(batch, channels, side, side)
            timer = LayerTimer(
                model.to(args.device), example, threads=args.threads, min_seconds=args.seconds
            )
            rows = [timer.measure("0", GROUPS, gathers=number) for number in range(3)]
            ratios[batch, channels] = [[row.ratio for row in kind] for kind in rows]
            dense[batch, channels] = rows[0][0].dense_ms
    return ratios, dense


def plot(ratios: Ratios, path: Path, batches: list[int]) -> None:
    with picture(picture_path(path), 3.0 * len(SIDES), 2.8 * len(batches)) as figure:
        grid = figure.subplots(len(batches), len(SIDES), squeeze=False, sharex=True, sharey=True)
        for row, batch in zip(grid, batches, strict=True):
            for axes, (channels, side) in zip(row, SIDES.items(), strict=True):
                for kind, values, colour, marker in zip(
                    KINDS, ratios[batch, channels], COLOURS, "o^s", strict=False
                ):
                    axes.plot(GROUPS, values, color=colour, marker=marker, label=kind)
                axes.plot(GROUPS, [1 / g for g in GROUPS], color="0.5", ls=":", label="MACs")
                axes.axhline(1, color="black", ls="--", lw=1)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log", base=2)
                axes.set_title(f"C = {channels}, {side}x{side}, batch {batch}", fontsize="medium")
                axes.grid(visible=True, color="0.9")
        for axes in grid[-1]:
            axes.set_xlabel("groups")
            axes.set_xticks(GROUPS, [str(g) for g in GROUPS])
        for axes in grid[:, 0]:
            axes.set_ylabel("time over dense")
            ticks = (2, 1, 0.5, 0.25, 0.125, 0.0625)
            axes.set_yticks(ticks, ["2", "1", "1/2", "1/4", "1/8", "1/16"])
        grid[0, 0].legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=0.2, help="at least, for each variant")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{machine()}, torch {torch.__version__}; {device}, {args.threads} threads")
    ratios, dense = measure(args)
    rows = [
        [f"{channels}, {SIDES[channels]}x{SIDES[channels]}", batch, f"{dense[batch, channels]:.3f}",
         kind, *(f"{ratio:.2f}" for ratio in values)]
        for (batch, channels), kinds in ratios.items()
        for kind, values in zip(KINDS, kinds, strict=True)
    ]  # fmt: skip
    header = ["C, HxW", "batch", "dense ms", "time over dense", *(f"G={g}" for g in GROUPS)]
    table("3x3 convolution, C = F", header, rows)
    if args.plot:
        plot(ratios, args.plot, args.batch)


if __name__ == "__main__":
    main()
