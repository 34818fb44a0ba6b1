"""Seconds of a trial with this code and with another commit's, in turn.

git worktree add /tmp/before 082dba6
python benchmarks/trial_pair.py /tmp/before --rounds 7 --models resnet20 resnet56

A trial is configs/digits-fpgm.yml with one epoch of each training on few images: what is left is
what a trial costs beside its training. Seconds are the processor's, of one thread, so that what
else runs on the machine does not count; imports are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys, time, tempfile, yaml
from pathlib import Path
from nni_gconv import run_recipe
import nni_gconv.recipe.stages
recipe = yaml.safe_load(Path(sys.argv[1]).read_text())
taken = []
for _ in range(4):  # the first loads what is loaded when it is used
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        result = run_recipe(recipe, output=folder, quiet=True)
        taken.append(time.process_time() - begun)
tree = str(Path(nni_gconv.recipe.stages.__file__).parents[2])
print(json.dumps({"seconds": min(taken[1:]), "metrics": result.metrics, "tree": tree}))
"""


def recipe_of(model: str) -> str:
    """The shipped recipe, shortened."""
    import yaml

    recipe = yaml.safe_load((ROOT / "configs" / "digits-fpgm.yml").read_text(encoding="utf-8"))
    recipe["model"] = {"name": model}
    recipe["data"]["train_size"] = 128
    for stage in ("train", "finetune"):
        recipe[stage]["epochs"] = 1
    recipe.update(report={"latency": None}, device="cpu", threads=1)
    return yaml.safe_dump(recipe)


def trial(tree: Path, recipe: Path) -> dict[str, object]:
    """Run a trial with the code of a working tree."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(recipe)],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
        cwd=recipe.parent,  # Python looks for packages there before it looks into PYTHONPATH
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["tree"] != str(tree.resolve()):
        sys.exit(f"the code of {found['tree']} ran, not that of {tree}")
    return found


def quartiles(values: list[float]) -> str:
    """Median, and first and third quartile in brackets."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="worktree of the other commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    given = parser.parse_args()
    print("| network | seconds before | now | saved a trial |\n|---|---|---|---|")
    for model in given.models:
        before, now = [], []
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "recipe.yml"
            recipe.write_text(recipe_of(model), encoding="utf-8")
            for _ in range(given.rounds):
                first, second = trial(given.before, recipe), trial(ROOT, recipe)
                if first["metrics"] != second["metrics"]:
                    sys.exit(f"{model}: the two do not end with the same numbers")
                before.append(float(first["seconds"]))
                now.append(float(second["seconds"]))
        saved = [b - n for b, n in zip(before, now, strict=True)]
        print(f"| {model} | {quartiles(before)} | {quartiles(now)} | {quartiles(saved)} |")


if __name__ == "__main__":
    main()
