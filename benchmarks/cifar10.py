"""Accuracy against MACs on CIFAR-10: every method on one pretrained network, within one budget.

    python benchmarks/cifar10.py DATA WEIGHTS --output runs/cifar10 --out docs/results.md
    python benchmarks/cifar10.py DATA WEIGHTS --methods fpgm,gconv --epochs 4 --finetune 4

DATA is a folder that the `cifar10` loader reads; WEIGHTS holds resnet20_cifar10.safetensors and
its like (see benchmarks/pretrained.py). Each point is one recipe, run by `nni-gconv run` in a
process of its own, --jobs of them at a time; a run that was stopped goes on when the command is
given again. The methods get the same epochs: methods that train spend --epochs of them before the
masks are made, and --finetune behind them; the others spend all of them behind the masks. Rates are
for a batch of 128 and grow with it. A tenth of the training images chooses the best epoch (the
pretrained network has seen them); accuracies are those of the 10 000 test images.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from pages import fill

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.files import write_json, write_text

CONVS = {"op_types": ["Conv2d"]}
#: Channel methods rank filters over all layers; a layer keeps four of its channels at least.
RANKED = {**CONVS, "global_group_id": "all", "min_channels": 4, "max_sparse_ratio": 0.8}
#: What differs between methods. `sparsify` methods train before the masks are made.
METHODS: dict[str, dict[str, Any]] = {
    "fpgm": {"config_list": [CONVS]},
    "fpgm, soft": {"config_list": [CONVS], "sparsify": {}, "options": {"schedule": "cubic"}},
    "gsparsity": {"config_list": [CONVS], "sparsify": {"optimizer": {"name": "ProxSGD"}}},
    "slimming": {
        "config_list": [RANKED],
        "sparsify": {},
        "options": {"strength": 1e-4, "penalty": "proximal", "coupling": "max",
                    "schedule": "cubic"},
    },
    "gconv": {"config_list": [CONVS]},
    "shuffle": {"config_list": [CONVS], "sparsify": {"optimizer": {"weight_decay": 0.0}}},
    "nni:L1NormPruner": {"config_list": [CONVS]},
}  # fmt: skip
#: Normalisation that the pretrained networks were trained with.
PIXELS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def recipe(method: str, network: str, macs: float, args: argparse.Namespace) -> dict[str, Any]:
    """Write the recipe of one point."""
    given = METHODS[method]
    scale = args.batch_size / 128
    sgd = {
        "name": "SGD",
        "lr": args.lr * scale,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
    }
    data = {"name": "cifar10", "root": str(args.data), "batch_size": args.batch_size,
            "eval_batch_size": 1000, "normalize": PIXELS, "train_size": args.images}  # fmt: skip
    made: dict[str, Any] = {
        "name": f"{network} {method} {macs:g}",
        "device": args.device,
        "threads": 1,
        "model": {
            "name": network,
            "weights": str(args.weights / f"{network}_cifar10.safetensors"),
        },
        "data": data,
        "prune": {
            "method": method.partition(",")[0],
            "config_list": given["config_list"],
            "budget": {"macs": macs},
            "options": given.get("options", {}),
        },
        "finetune": {
            "epochs": args.finetune + (0 if "sparsify" in given else args.epochs),
            "optimizer": sgd,
            "schedule": {"name": "cosine", "warmup": 1},
        },
        "report": {"latency": None},
    }
    if "sparsify" in given:
        optimizer = {**sgd, **given["sparsify"].get("optimizer", {})}
        if optimizer["name"] == "ProxSGD":
            optimizer = {"name": "ProxSGD", "lr": 2e-3 * scale, "exact_zeros": True}
        made["sparsify"] = {
            "epochs": args.epochs,
            "optimizer": optimizer,
            "schedule": {"name": "constant"},
            "keep": "last",
        }
    return made


def run(point: tuple[str, str, float], args: argparse.Namespace) -> dict[str, Any]:
    """Run one point in a process of its own; return its row."""
    method, network, macs = point
    name = "".join(c if c.isalnum() else "-" for c in f"{network}-{method}-{macs:g}")
    folder = args.output / name
    write_text(args.output / f"{name}.yml", yaml.safe_dump(recipe(method, network, macs, args)))
    command = [sys.executable, "-m", "nni_gconv", "run", str(args.output / f"{name}.yml")]
    begun = time.monotonic()
    with (args.output / f"{name}.log").open("w") as log:
        done = subprocess.run(
            [*command, "--output", str(folder)], stdout=log, stderr=log, check=False
        )
    row: dict[str, Any] = {"method": method, "network": network, "budget": macs}
    if done.returncode:
        lines = (args.output / f"{name}.log").read_text().strip().splitlines() or ["no message"]
        return {**row, "error": lines[-1]}
    result = json.loads((folder / "result.json").read_text())
    epochs = [
        result["recipe"][k]["epochs"] for k in ("sparsify", "finetune") if result["recipe"][k]
    ]
    masked = result["stages"]["prune"]
    row |= {
        "epochs": epochs,
        "seconds": round(time.monotonic() - begun),
        "gathers": result["stages"]["speedup"]["gathers"],
        "density": masked["mask_density"],
        **{k: result["metrics"][k] for k in ("params_ratio", "macs_ratio", "accuracy")},
        "test": result["test"]["accuracy"],
        "test_dense": result["test"]["accuracy_dense"],
    }
    print(f"{row['network']} {method} {macs:g}: {100 * row['test']:.2f} %", flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | method | MACs | params | test % | dense % | difference | epochs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['network']} | {row['method']} | {row['error']} |||||")
            continue
        test, dense = 100 * row["test"], 100 * row["test_dense"]
        lines.append(
            f"| {row['network']} | {row['method']} | {row['macs_ratio']:.3f} | "
            f"{row['params_ratio']:.3f} | {test:.2f} | {dense:.2f} | {test - dense:+.2f} | "
            f"{' + '.join(map(str, row['epochs']))} |"
        )
    return "\n".join(lines)


def machine(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__.partition('+')[0]}"
    return f"{platform.machine()} CPU, torch {torch.__version__.partition('+')[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--methods", help="comma-separated (a 'fpgm, soft' is written fpgm-soft)")
    parser.add_argument("--networks", default="resnet56")
    parser.add_argument("--macs", default="0.474", help="comma-separated shares of dense")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--finetune", type=int, default=60)
    parser.add_argument("--images", type=int, help="train on so many only")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05, help="for a batch of 128")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--out", type=Path, help="Markdown file whose table is replaced")
    args = parser.parse_args()
    names = {name.replace(", ", "-"): name for name in METHODS}
    asked = args.methods.split(",") if args.methods else list(names)
    for name in asked:
        if name not in names:
            raise ConfigError(unknown_name("method", name, names))
    args.output.mkdir(parents=True, exist_ok=True)
    points = [
        (names[name], network, float(macs))
        for network in args.networks.split(",")
        for macs in args.macs.split(",")
        for name in asked
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda point: run(point, args), points))
    device = args.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    words = f"{machine(device)}, batch {args.batch_size}, lr {args.lr:g} for 128 of them."
    write_json(args.output / "rows.json", {"ran on": words, "rows": rows})
    print("\n" + table(rows))
    if args.out:
        begin, end = "<!-- table -->\n", "<!-- end -->"
        fill(args.out, begin, end, f"{words}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
