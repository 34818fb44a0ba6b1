"""What one trial costs from start to end, by stage, and how it grows with depth and width.

    python benchmarks/trial_cost.py --out docs/scaling.md       # minutes, one CPU thread

The recipe: digits, two epochs of training, FPGM to half the MACs, speedup with verification, two
epochs of fine-tuning, both networks measured (without latency). Seconds are those of one thread's
CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from partition import machine

from nni_gconv.recipe import folder as folder_module
from nni_gconv.recipe import run_recipe

STAGES = ["train", "prune", "speedup", "finetune", "report"]


def cost(name: str, width: float, images: int) -> list[str]:
    recipe = {
        "device": "cpu",
        "threads": 1,
        "model": {"name": name, "options": {"width": width}},
        "data": {"name": "digits", "batch_size": 64, "train_size": images},
        "train": {"epochs": 2},
        "prune": {"method": "fpgm", "budget": {"macs": 0.5}},
        "finetune": {"epochs": 2},
        "report": {"latency": None},
    }
    with tempfile.TemporaryDirectory() as output:
        begun = time.process_time()
        result = run_recipe(recipe, output=output, quiet=True)
        whole = time.process_time() - begun
    seconds = [result.stages[stage]["seconds"] for stage in STAGES]
    shown = [f"{second:.2f}" for second in (*seconds, whole - sum(seconds), whole)]
    macs = result.dense["macs"] / 1e6
    return [name, f"{width:g}", f"{macs:.2f}", *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet20", "resnet56"])
    parser.add_argument("--widths", nargs="+", type=float, default=[0.25, 0.5, 1.0])
    parser.add_argument("--images", type=int, default=640, help="training images, a tenth held out")
    parser.add_argument("--out", type=Path, help="page whose table <!-- trial --> is replaced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Stages are timed by the clock on the wall; here by what this process spends.
    folder_module.time = SimpleNamespace(monotonic=time.process_time)
    cost("resnet8", 0.25, 100)  # what only the first trial of a process pays
    middle = args.widths[len(args.widths) // 2]
    pairs = [(name, middle) for name in args.models]
    pairs += [(args.models[1], width) for width in args.widths if width != middle]
    rows = []
    for name, width in pairs:
        rows.append(cost(name, width, args.images))
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["network", "width", "MACs, M", *STAGES, "the rest", "all"]
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    given = f"{machine()}; torch {torch.__version__}, one thread, {args.images} images."
    text = "\n".join(["", *lines, "", f"(CPU seconds. {given})", ""])
    print(text)
    if args.out:
        page = args.out.read_text(encoding="utf-8")
        before, _, rest = page.partition("<!-- trial -->")
        _, _, after = rest.partition("<!-- end -->")
        args.out.write_text(f"{before}<!-- trial -->\n{text}\n<!-- end -->{after}", "utf-8")


if __name__ == "__main__":
    main()
