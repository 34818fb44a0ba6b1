"""The group search of experiments/group-search with several seeds: what a budget keeps.

    python benchmarks/group_seeds.py runs/group-seeds --seeds 3 --trials 20

Each seed is an experiment of its own under NNI: another dense network, other images held back,
another tuner. Of each, validation images choose the best network within a budget of MACs, and test
images say what it is worth. Prints Markdown: mean and standard deviation over the seeds; draws the
same. Seeds that have run already are read again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import mean, stdev

import yaml
from partition import machine

from nni_gconv.display import picture
from nni_gconv.experiment import experiment_file, run_experiment
from nni_gconv.experiment.progress import ExperimentView
from nni_gconv.report import TrialRow, collect
from nni_gconv.yaml12 import read_yaml

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def written(folder: Path, seed: int, trials: int, epochs: int | None) -> Path:
    """Copy the experiment with a seed of its own, for recipe and tuner."""
    source = experiment_file("group-search").parent
    shutil.copytree(source, folder, dirs_exist_ok=True)
    experiment, recipe = (
        read_yaml((folder / name).read_text(), name) for name in ("experiment.yml", "recipe.yml")
    )
    experiment["maxTrialNumber"] = trials
    experiment["tuner"]["classArgs"]["seed"] = recipe["seed"] = seed
    if epochs is not None:
        recipe["finetune"]["epochs"] = epochs
    for name, content in (("experiment.yml", experiment), ("recipe.yml", recipe)):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "experiment.yml"


def rows_of(folder: Path, seed: int, trials: int, epochs: int | None) -> list[TrialRow]:
    """Run a seed, or read what it came to."""
    kept, done = folder / "kept", folder / "experiment.txt"
    if not done.is_file():
        file = written(folder / "files", seed, trials, epochs)
        outcome = run_experiment(file, output=kept, view=ExperimentView.on_stderr())
        if not outcome.ok:
            raise SystemExit(outcome.message)
        done.write_text(str(outcome.folder))
    return collect(done.read_text())[:trials]


def best(rows: list[TrialRow], budget: float) -> TrialRow:
    """Return the network that validation images prefer within a budget."""
    within = [r for r in rows if r.macs_ratio is not None and r.macs_ratio <= budget + 1e-9]
    return max(within, key=lambda row: (row.accuracy or 0.0, -(row.macs_ratio or 0.0)))


def spread(values: list[float], form: str = "{:.2f}") -> str:
    text = form.format(mean(values))
    return f"{text} ± {form.replace('+', '').format(stdev(values))}" if len(values) > 1 else text


def draw(points: list[tuple[float, list[float]]], dense: list[float], file: Path) -> None:
    with picture(file, 6.0, 3.6) as figure:
        axes = figure.subplots()
        x, y = [budget for budget, _ in points], [mean(values) for _, values in points]
        error = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        label = "best network within the budget"
        axes.errorbar(x, y, yerr=error, marker="o", capsize=4, label=label)
        axes.axhline(mean(dense), color="#666", linestyle="--", label="dense")
        if len(dense) > 1:
            low, high = mean(dense) - stdev(dense), mean(dense) + stdev(dense)
            axes.axhspan(low, high, color="#666", alpha=0.15, linewidth=0)
        axes.set(xlabel="budget: MACs (small / dense)", ylabel="test accuracy (%)")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the experiments")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20, help="of each seed")
    parser.add_argument("--epochs", type=int, help="of fine-tuning, instead of the recipe's")
    parser.add_argument("--plot", type=Path, help="picture to draw")
    args = parser.parse_args()
    found = [
        rows_of(args.output / f"seed-{seed}", seed, args.trials, args.epochs)
        for seed in range(args.seeds)
    ]
    dense = [100 * (rows[0].test_accuracy_dense or 0.0) for rows in found]
    points = []
    print("| MACs at most | test accuracy (%) | points above dense | MACs | parameters |")
    print("|---|---|---|---|---|")
    for budget in BUDGETS:
        chosen = [best(rows, budget) for rows in found]
        test = [100 * (row.test_accuracy or 0.0) for row in chosen]
        delta = [value - base for value, base in zip(test, dense, strict=True)]
        macs = spread([row.macs_ratio or 0.0 for row in chosen], "{:.3f}")
        params = spread([row.params_ratio or 0.0 for row in chosen], "{:.3f}")
        print(f"| {budget} | {spread(test)} | {spread(delta, '{:+.2f}')} | {macs} | {params} |")
        points.append((budget, test))
    print(f"| dense | {spread(dense)} | | 1 | 1 |")
    print(f"\n({args.seeds} seeds, {args.trials} trials each; {machine()})")
    if args.plot is not None:
        draw(points, dense, args.plot)


if __name__ == "__main__":
    main()
