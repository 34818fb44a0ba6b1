"""Accuracy on CIFAR-10 after short fine-tuning, ours and peers: recipes in benchmarks/results.

    python benchmarks/results.py DATA WEIGHTS --only resnet20b-half
    python benchmarks/results.py DATA WEIGHTS --only "resnet20b-half: NNI L1" --epochs 1
    python benchmarks/results.py --docs
    python benchmarks/results.py --files

DATA holds the four arrays that the `cifar10` loader reads, WEIGHTS the files that
benchmarks/pretrained.py names. A file in benchmarks/results gives one recipe and several methods,
each a `prune` section; every method is run with every number of epochs, with distillation from the
dense network and without, and with every seed. Epochs of a method's `sparsify`, before the masks
are made, are counted in. A row is one run of `nni-gconv`'s recipe: a tenth of the training images
chooses the best epoch, the test images are looked at before and after fine-tuning and choose
nothing. Rows that stand in the file's .json already are not run again, and a run that was stopped
goes on from its last epoch. --docs writes the tables and the pictures of docs/results.md from the
rows. --files copies the small networks of the rows that a file names under `files` to
benchmarks/results/files, where benchmarks/evaluate.py measures them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from matplotlib.ticker import LogLocator, NullLocator
from pages import fill
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau, spearmanr

from nni_gconv import run_recipe
from nni_gconv.display import COLOURS, picture
from nni_gconv.errors import NniGconvError
from nni_gconv.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FILES = RESULTS / "files"
DOCS = HERE.parent / "docs"
DISTILL = {"temperature": 4.0, "weight": 0.7}
_console = Console(stderr=True)


def recipe_of(
    plan: dict[str, Any], method: str, epochs: int, distilled: bool, seed: int
) -> dict[str, Any]:
    """Write the recipe of one row, without the places of data and weights."""
    shared = plan["recipe"]
    how = dict(plan["methods"][method])
    maps = {key: how.pop(key) for key in ("features", "features_epochs") if key in how}
    distill = {**DISTILL, **maps} if distilled else None
    before = how.pop("sparsify", None)
    left = epochs - (before["epochs"] if before else 0)
    own = how.pop("finetune", {})
    tuned = {**shared["finetune"], **own, "epochs": left, "distill": distill}
    recipe = {**shared, "seed": seed, "prune": {**shared["prune"], **how}, "finetune": tuned}
    return {**recipe, "sparsify": {**before, "distill": distill}} if before else recipe


def key_of(method: str, epochs: int, distilled: bool, seed: int) -> str:
    """Name a row of a file."""
    how = "distilled" if distilled else "labels alone"
    return f"{method}, {epochs} epochs, {how}" + (f", seed {seed}" if seed else "")


def slug(key: str) -> str:
    """Name the folder of a row."""
    return "".join(c if c.isalnum() else "-" for c in key)


def file_of(name: str, key: str) -> str:
    """Name the compact file of a row."""
    return f"{name}--{slug(key)}.safetensors"


def rows_of(
    plans: dict[str, Any], epochs: list[int] | None, seeds: list[int] | None = None
) -> Iterator[tuple[str, tuple[str, int, bool, int]]]:
    """Name every row: its file, and what it consists of; the first seed comes first."""
    for name, plan in plans.items():
        asked = [n for n in plan["epochs"] if epochs is None or n in epochs]
        drawn = [n for n in range(plan.get("seeds", 1)) if seeds is None or n in seeds]
        orders = product(drawn, asked, (True, False), plan["methods"])
        for seed, number, distilled, method in orders:
            if "features" in plan["methods"][method] and not distilled:
                continue  # feature maps are a teacher's
            yield name, (method, number, distilled, seed)


def run_row(recipe: dict[str, Any], args: argparse.Namespace, weights: str, folder: Path) -> Any:
    """Run one recipe; return what it came to."""
    placed = {
        **recipe,
        "name": None,
        "model": {**recipe["model"], "weights": str(args.weights / weights)},
        "data": {**recipe["data"], "root": str(args.data)},
    }
    begun = time.monotonic()
    result = run_recipe(placed, output=folder)
    return {
        "macs": round(result.metrics["macs_ratio"], 4),
        "params": round(result.metrics["params_ratio"], 4),
        "dense": result.test["accuracy_dense"],
        "small": result.test["accuracy_small"],
        "accuracy": result.test["accuracy"],
        "validation": result.metrics["accuracy"],
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "versions": result.versions,
    }


def commit() -> str:
    """Name the commit that ran."""
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def run(plans: dict[str, Any], args: argparse.Namespace) -> None:
    """Run the rows that are asked for and not there, and keep each as it comes."""
    os.chdir(HERE)  # where recipes find torch_pruning_method
    for name, row_of in rows_of(plans, args.epochs, args.seeds):
        key = key_of(*row_of)
        if args.only and not any(word in f"{name}: {key}" for word in args.only):
            continue
        done = read(name)
        if key in done:
            continue
        recipe = recipe_of(plans[name], *row_of)
        folder = args.output / name / slug(key)
        row = {
            "recipe": recipe,
            "commit": commit(),
            "command": f'python benchmarks/results.py DATA WEIGHTS --only "{name}: {key}"',
        }
        try:
            row |= run_row(recipe, args, plans[name]["weights"], folder)
        except NniGconvError as error:
            _console.print(f"{name}: {key}: {error}", markup=False, highlight=False)
            continue
        write_json(RESULTS / f"{name}.json", {**read(name), key: row})
        _console.print(f"{name}: {key}: {100 * row['accuracy']:.2f} %", markup=False)


def read(name: str) -> dict[str, Any]:
    """Read the rows of a file that are there."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def keep_files(plans: dict[str, Any], output: Path) -> None:
    """Copy the small networks of the best rows, with the rows' recipes, which name no places."""
    FILES.mkdir(exist_ok=True)
    for name, plan in plans.items():
        for key in plan.get("files", []):
            made = output / name / slug(key) / "compact.safetensors"
            with safe_open(made, "pt") as opened:
                recipe = json.dumps(read(name)[key]["recipe"])
                about = {**opened.metadata(), "nni_gconv.recipe": recipe}
            save_file(load_file(made), FILES / file_of(name, key), about)


def of_seeds(
    plan: dict[str, Any], done: dict[str, Any], method: str, epochs: int, distilled: bool
) -> list[dict[str, Any]]:
    """Return the rows that are there of one method, a row for each seed."""
    keys = [key_of(method, epochs, distilled, seed) for seed in range(plan.get("seeds", 1))]
    return [done[key] for key in keys if key in done]


def accuracy(rows: list[dict[str, Any]]) -> str:
    """Write the mean accuracy in %, of several seeds with the deviation and their number."""
    found = [100 * row["accuracy"] for row in rows]
    if len(found) < 2:
        return "".join(f"{one:.2f}" for one in found)
    return f"{mean(found):.2f} ± {stdev(found):.2f} ({len(found)})"


def table(plan: dict[str, Any], done: dict[str, Any]) -> str:
    """Write the rows of a file as Markdown, a line for each method and loss."""
    numbers = plan["epochs"]
    heads = [f"{n} epoch{'s' * (n > 1)}" for n in numbers]
    lines = [
        f"### {plan['title']}, {100 * next(iter(done.values()))['dense']:.2f} % dense",
        "",
        f"| method | loss | MACs | params | nothing trained | {' | '.join(heads)} |",
        "|---" * (5 + len(heads)) + "|",
    ]
    for method in plan["methods"]:
        for how in ("distilled", "labels alone"):
            runs = {n: of_seeds(plan, done, method, n, how == "distilled") for n in numbers}
            if not any(runs.values()):
                continue
            found = next(rows[0] for rows in runs.values() if rows)
            cells = [accuracy(rows) for rows in runs.values()]
            lines.append(
                f"| {method} | {how} | {found['macs']:.3f} | {found['params']:.3f} | "
                f"{100 * found['small']:.2f} | {' | '.join(cells)} |"
            )
    commits = ", ".join(sorted({row["commit"] for row in done.values()}))
    precision = plan["recipe"]["finetune"].get("amp", "float32")
    kept = "each row's recipe and command stand beside it"
    return "\n".join([*lines, "", f"Trained in {precision}. Commit {commits}; {kept}."])


def draw(plan: dict[str, Any], done: dict[str, Any], path: Path) -> None:
    """Draw what is lost against epochs of fine-tuning, a line for each method and loss."""
    dense = next(iter(done.values()))["dense"]
    places = {number: place for place, number in enumerate([0, *plan["epochs"]])}
    with picture(path, 7.0, 4.5) as figure:
        axes = figure.subplots()
        styles = {"distilled": "o-", "labels alone": "s--"}
        lines = {
            (method, how): {
                n: of_seeds(plan, done, method, n, how == "distilled") for n in plan["epochs"]
            }
            for method in plan["methods"]
            for how in styles
        }
        # A line across numbers of epochs that were not run would show what nobody has seen.
        seen = {key: rows for key, rows in lines.items() if _no_gap(rows.values())}
        methods = dict.fromkeys(method for method, _ in seen)
        for method, colour in zip(methods, COLOURS, strict=False):
            for how, line in styles.items():
                found = {n: rows for n, rows in seen.get((method, how), {}).items() if rows}
                if found:
                    points = {0: next(iter(found.values()))[0]["small"]}
                    points |= {n: mean(r["accuracy"] for r in rows) for n, rows in found.items()}
                    # On a logarithmic axis nothing lost has no place.
                    lost = [max(100 * (dense - accuracy), 0.1) for accuracy in points.values()]
                    where = [places[n] for n in points]
                    axes.plot(where, lost, line, color=colour, label=f"{method}, {how}")
        axes.set(xlabel="epochs of fine-tuning", ylabel="points of test accuracy lost")
        axes.set(yscale="log", title=plan["title"])
        axes.set_xticks(list(places.values()), [str(number) for number in places])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", color="0.9")
        axes.legend(fontsize=8, loc="upper right")


def _no_gap(rows: Iterable[Any]) -> bool:
    """Tell whether there are rows, and none behind a place that has none."""
    there = [bool(row) for row in rows]
    return there[0] and there == sorted(there, reverse=True)


def foretold(plans: dict[str, Any], epochs: int) -> str:
    """Say how alike the orders of the fitted networks are, of nothing trained and of fine-tuned.

    All of one pretrained network, of half its MACs, trained with the dense network's logits alone.
    """
    found: list[tuple[float, float]] = []
    for name, plan in plans.items():
        done = read(name) if "resnet20b" in name else {}
        for method, asked in plan["methods"].items():
            rows = of_seeds(plan, done, method, epochs, distilled=True)
            small = [row["small"] for row in rows if 0.49 < row["macs"] < 0.51]
            # Without a fit the accuracy with nothing trained is chance, for every choice.
            fitted = asked.get("reconstruct") or asked.get("method") == "second_order"
            if small and fitted and "features" not in asked:
                found.append((mean(small), mean(row["accuracy"] for row in rows)))
    before, after = zip(*found, strict=True)
    spearman, kendall = spearmanr(before, after).statistic, kendalltau(before, after).statistic
    return f"| {epochs} | {len(found)} | {spearman:.2f} | {kendall:.2f} |"


def document(plans: dict[str, Any]) -> None:
    """Write the tables and pictures of docs/results.md from the rows that are there."""
    begin, end = "<!-- rows: written by benchmarks/results.py -->\n", "<!-- end of rows -->"
    parts = []
    for name, plan in plans.items():
        done = read(name)
        if not done:
            continue
        if len(plan["epochs"]) > 1:
            draw(plan, done, DOCS / "images" / f"results-{name}.png")
            parts.append(f"![{plan['title']}](images/results-{name}.png)")
        parts.append(table(plan, done))
    heads = ["| epochs | networks | Spearman | Kendall |", "|---|---|---|---|"]
    orders = "\n".join([*heads, *(foretold(plans, epochs) for epochs in (1, 3))])
    asked = "### Does accuracy with nothing trained say who is ahead after fine-tuning?"
    parts += [asked, orders]
    fill(DOCS / "results.md", begin, end, "\n" + "\n\n".join(parts) + "\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", help="rows whose 'FILE: ROW' holds one of these")
    parser.add_argument("--epochs", nargs="+", type=int, help="rows of these numbers of epochs")
    parser.add_argument("--seeds", nargs="+", type=int, help="rows of these seeds")
    parser.add_argument("--output", type=Path, default=Path("runs/results").absolute())
    parser.add_argument("--docs", action="store_true", help="write docs/results.md again")
    parser.add_argument("--files", action="store_true", help="copy the best small networks")
    args = parser.parse_args()
    plans = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(RESULTS.glob("*.yml"))}
    if args.data is not None and args.weights is not None:
        args.data, args.weights = args.data.absolute(), args.weights.absolute()
        run(plans, args)
    if args.files:
        keep_files(plans, args.output)
    if args.docs:
        document(plans)


if __name__ == "__main__":
    main()
