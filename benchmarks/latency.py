"""Is half of the MACs half of the time? Dense and small networks timed in turn.

    python benchmarks/latency.py --cache latency.csv --out docs/latency.md

Each network is pruned by FPGM to half of its MACs (weights are random: time does not depend on
them), once with any number of channels and once with multiples of 8 and of 16. Dense and small
network, with batch norms and with them folded into the convolutions, run in turn (A B C D A B C
D), and every time is divided by the dense network's of the same round; medians are reported.
Cases that the cache file holds are not run again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup
from nni_gconv.export import fold_batch_norms
from nni_gconv.profiling import compare_latency, count
from nni_gconv.training.zoo import create_model, input_size

MODELS = ["resnet56", "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:resnet50",
          "torchvision:vgg16_bn"]  # fmt: skip
ROUNDED = ["torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:resnet50"]
MULTIPLES = (8, 16)
BATCHES = (1, 64)
FIELDS = ["model", "kind", "batch", "channels_last", "macs_left", "params_left", "dense_ms",
          "ratio", "low", "high"]  # fmt: skip


def prune(model: nn.Module, dummy: torch.Tensor, round_to: int) -> nn.Module:
    """Return a copy with half of the MACs."""
    small = copy.deepcopy(model)
    config = [{"op_types": ["Conv2d"], "round_to": round_to}]
    pruner = FPGMPruner(small, config, budget={"macs": 0.5}, dummy_input=dummy)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return ModelSpeedup(small, dummy, masks, verify=False).speedup_model()


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one network in all cases."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    dummy = torch.randn(1, *input_size(name))
    models = {"dense": model, "small": prune(model, dummy, 1)}
    models |= {f"{k}, folded": fold_batch_norms(m, dummy) for k, m in list(models.items())}
    if name in ROUNDED:
        models |= {f"small, multiples of {n}": prune(model, dummy, n) for n in MULTIPLES}
    dense = count(model, dummy)
    counts = {kind: count(m, dummy) for kind, m in models.items()}
    rows = []
    for batch in BATCHES:
        for channels_last in (False, True):
            found = compare_latency(
                models, dummy, batch_size=batch, threads=args.threads, min_runs=args.runs,
                min_seconds=args.seconds, warmup=1, channels_last=channels_last,
            )  # fmt: skip
            rows += [
                {
                    "model": name,
                    "kind": kind,
                    "batch": batch,
                    "channels_last": int(channels_last),
                    "macs_left": counts[kind].macs / dense.macs,
                    "params_left": counts[kind].params / dense.params,
                    "dense_ms": found.latencies["dense"].median_ms,
                    "ratio": found.ratios[kind],
                    "low": found.ratio_quartiles[kind][0],
                    "high": found.ratio_quartiles[kind][1],
                }
                for kind in models
            ]
    return rows


def read_cache(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {k: v if k in ("model", "kind") else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def write_cache(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def cases(rows: list[dict[str, Any]]) -> list[tuple[list[str], dict[str, dict[str, Any]]]]:
    """Group rows by model, batch and layout; return the first cells of each and its kinds."""
    grouped: dict[tuple[str, float, float], dict[str, dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["model"], row["batch"], row["channels_last"]), {})[row["kind"]] = (
            row
        )
    return [
        (
            [
                model.removeprefix("torchvision:"),
                f"{batch:.0f}",
                "channels last" if last else "channels first",
                f"{kinds['dense']['dense_ms']:.1f}",
            ],
            kinds,
        )
        for (model, batch, last), kinds in grouped.items()
    ]


def folding_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | batch | layout | dense ms | MACs left | params left | small | dense, folded "
        "| small, folded | folded small over folded dense |",
        "|" + "---|" * 10,
    ]
    for cells, kinds in cases(rows):
        small, folded = kinds["small"], kinds["dense, folded"]["ratio"]
        cells += [f"{small['macs_left']:.3f}", f"{small['params_left']:.3f}"]
        cells.append(f"{small['ratio']:.2f} ({small['low']:.2f} to {small['high']:.2f})")
        cells += [f"{kinds[k]['ratio']:.2f}" for k in ("dense, folded", "small, folded")]
        cells.append(f"{kinds['small, folded']['ratio'] / folded:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rounding_table(rows: list[dict[str, Any]]) -> str:
    names = [f"small, multiples of {n}" for n in MULTIPLES]
    lines = [
        "| model | batch | layout | any number | " + " | ".join(n[7:] for n in names) + " |",
        "|" + "---|" * (4 + len(names)),
    ]
    for cells, kinds in cases(rows):
        if names[0] in kinds:
            found = [kinds[k] for k in ("small", *names)]
            shown = [f"{row['ratio']:.2f} (MACs {row['macs_left']:.3f})" for row in found]
            lines.append("| " + " | ".join([*cells[:3], *shown]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7, help="rounds at least")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds a network at least")
    parser.add_argument("--cache", type=Path, help="CSV file; models in it are not timed again")
    parser.add_argument("--out", type=Path, help="Markdown file whose tables are replaced")
    args = parser.parse_args()
    rows = read_cache(args.cache)
    for name in args.models.split(","):
        if not any(row["model"] == name for row in rows):
            rows += measure(name, args)
            if args.cache:
                write_cache(args.cache, rows)
            print(folding_table([r for r in rows if r["model"] == name]), flush=True)
    machine = f"{platform.machine()}, {args.threads} thread(s), torch {torch.__version__}"
    tables = {"folding": folding_table(rows), "rounding": rounding_table(rows)}
    for name, text in tables.items():
        print("\n" + text)
        if args.out:
            begin, end = f"<!-- {name} -->\n", "<!-- end -->"
            head, _, rest = args.out.read_text().partition(begin)
            after = rest.partition(end)[2]
            args.out.write_text(f"{head}{begin}{machine}.\n\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
