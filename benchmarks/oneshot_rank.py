"""Does accuracy without training choose well? Trials of a one-shot search, fine-tuned and compared.

    nni-gconv create experiments/oneshot-search/experiment.yml --output runs/search
    python benchmarks/oneshot_rank.py runs/search/ID --docs --figure docs/images/rank.png

Trials of the Pareto front, of nearly the same cost (--band, where MACs alone do not choose) and of
all costs are fine-tuned with the dense network as teacher, each from its own recipe; the
dense network and its statistics are those of the experiment. Spearman's and Kendall's correlation
say how well the order without training is the order after it. All accuracies are of validation
images. Runs that are finished already are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import fill
from rich.console import Console
from scipy.stats import kendalltau, spearmanr

from nni_gconv import run_recipe
from nni_gconv.display import picture
from nni_gconv.files import write_json
from nni_gconv.report import TrialRow, collect, pareto_front

DOCS = Path(__file__).parents[1] / "docs" / "oneshot.md"
_console = Console(stderr=True)


def chosen(rows: Sequence[TrialRow], band: tuple[float, float], points: int) -> list[TrialRow]:
    """Take trials of the front, of a narrow band of costs, and of all costs, in equal steps."""
    inside = [r for r in rows if r.macs_ratio is not None and band[0] <= r.macs_ratio <= band[1]]
    inside.sort(key=lambda row: row.accuracy or 0)
    every = sorted(rows, key=lambda row: row.macs_ratio or 0)
    parts = pareto_front(rows), inside, every
    taken = {row.trial: row for part in parts for row in spread(part, points)}
    return list(taken.values())


def spread(rows: Sequence[TrialRow], points: int) -> list[TrialRow]:
    """Take so many of a list, its ends too."""
    if len(rows) <= points:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]


def tuned(row: TrialRow, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune one trial's network; return its accuracies before and after."""
    if row.folder is None:
        raise ValueError(f"{row.trial} has no folder")
    shared = Path(row.folder).parents[1]
    overrides = {
        "train.share": str(shared),
        "prune.calibration.share": str(shared / "nni_gconv_statistics"),
        "objective": None,
        "finetune": {
            "epochs": args.epochs,
            "distill": {"temperature": 4, "weight": 0.7},
            "optimizer": {"lr": args.lr},
        },
    }
    file = Path(row.folder) / "recipe.yml"
    result = run_recipe(file, overrides=overrides, output=args.out / row.trial, quiet=True)
    return {
        "trial": row.trial,
        "macs": result.metrics["macs_ratio"],
        "small": result.metrics["accuracy_small"],
        "accuracy": result.metrics["accuracy"],
        "test": result.test["accuracy"],
    }


def correlations(rows: Sequence[dict[str, Any]]) -> str:
    """Say how many points there are, and how alike both orders are."""
    before, after = [r["small"] for r in rows], [r["accuracy"] for r in rows]
    spearman, kendall = spearmanr(before, after).statistic, kendalltau(before, after).statistic
    return f"{len(rows)} | {spearman:.2f} | {kendall:.2f}"


def table(rows: Sequence[dict[str, Any]], band: tuple[float, float]) -> str:
    """Write both correlations as Markdown."""
    inside = [r for r in rows if band[0] <= r["macs"] <= band[1]]
    return "\n".join(
        [
            "| networks | points | Spearman | Kendall |",
            "|---|---|---|---|",
            f"| all | {correlations(rows)} |",
            f"| of {band[0]:g} to {band[1]:g} of the MACs | {correlations(inside)} |",
        ]
    )


def draw(rows: Sequence[dict[str, Any]], band: tuple[float, float], path: Path) -> None:
    """Draw accuracy after fine-tuning against accuracy before."""
    with picture(path, 6.0, 4.5) as figure:
        axes = figure.subplots()
        for inside, colour, label in (
            (True, "#D55E00", f"{band[0]:g} to {band[1]:g} of the MACs"),
            (False, "#0072B2", "others"),
        ):
            points = [r for r in rows if (band[0] <= r["macs"] <= band[1]) is inside]
            before, after = ([100 * r[k] for r in points] for k in ("small", "accuracy"))
            axes.plot(before, after, "o", color=colour, label=label)
        axes.set(xlabel="accuracy in %, nothing trained", ylabel="accuracy in %, fine-tuned")
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, help="folder of the finished experiment")
    parser.add_argument("--points", type=int, default=12, help="of the front, and of the band")
    parser.add_argument("--band", nargs=2, type=float, default=[0.45, 0.55], help="shares of MACs")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=Path("runs/rank"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--docs", action="store_true", help="write the table into docs/oneshot.md")
    args = parser.parse_args()
    experiment, band = args.experiment.resolve(), (args.band[0], args.band[1])
    rows = [row for row in collect(experiment) if row.accuracy is not None]
    found = []
    for row in chosen(rows, band, args.points):
        found.append(tuned(row, args))
        _console.print(json.dumps(found[-1]), markup=False, highlight=False)
    write_json(args.out / "rows.json", found)
    text = table(found, band)
    print(text)
    if args.figure is not None:
        draw(found, band, args.figure)
    if args.docs:
        begin, end = (
            "<!-- rank: written by benchmarks/oneshot_rank.py -->\n",
            "<!-- end of rank -->",
        )
        fill(DOCS, begin, end, f"\n{text}\n\n")


if __name__ == "__main__":
    main()
