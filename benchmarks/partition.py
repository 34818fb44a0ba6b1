"""Retained score and time of `partition`, beside the paper's heuristic (GRPS) in the same run.

    python benchmarks/partition.py                       # every table, about five minutes
    python benchmarks/partition.py --only dense --samples 20
    python benchmarks/partition.py --only resnet50 --workers 2 --weights DEFAULT
    python benchmarks/partition.py --only pretrained --cifar FOLDER

Prints Markdown. Times are wall time of one call in one thread (set OMP_NUM_THREADS=1 to hold BLAS
to it too), and compare within a run only; "resnet50" and "pretrained" are the wall time of
`partition_many`, with the CPU time of all threads beside it, which other work on the machine hardly
changes.
"assignment" is the default solver, "no annealing" the same with ``restarts=0``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from statistics import mean

import numpy as np
import scipy

from nni_gconv.groupconv.partition import (
    kernel_norms,
    partition,
    partition_many,
    solve,
    upper_bound,
)

METHODS = {
    "GRPS 10": {"method": "grps", "num_sort_iters": 10},
    "GRPS 100": {"method": "grps", "num_sort_iters": 100},
    "no annealing": {"restarts": 0},
    "assignment": {},
}
#: An ordinary network, and one trained to have weak channels.
PRETRAINED = {
    "ResNet-56": ("resnet56", "resnet56_cifar10.safetensors"),
    "group-sparse ResNet-56": ("resnet56b", "cifar10_resnet56b_torchpruning_groupsl_dense.pt"),
}


def table(title: str, header: list[str], rows: list[list[object]]) -> None:
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def timed(scores: np.ndarray, groups: int, **options):
    start = time.perf_counter()
    result = partition(scores, groups, **options)
    return result, time.perf_counter() - start


def kernels(seed: int, rows: int, cols: int, size: int) -> np.ndarray:
    weight = np.random.default_rng(seed).standard_normal((rows, cols, size, size))
    return kernel_norms(weight)


def planted(seed: int, side: int, groups: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    block = np.kron(np.eye(groups), np.ones((side // groups, side // groups)))
    scores = block * (rng.random((side, side)) + 10 * rng.random((side, side)))
    return scores[rng.permutation(side)][:, rng.permutation(side)]


def vectors(args: argparse.Namespace) -> None:
    i, j = np.indices((8, 8))
    steps = 0.001 * np.arange(32).reshape(4, 8)
    cases = {
        "G1, G=2": ([[9, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7.5]], 2, 60.5),
        "G1, G=4": ([[9, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7.5]], 4, 32.5),
        "G2": (
            [[9, 3.01, 9.02, 7.03], [9.04, 2.05, 7.06, 9.07], [1.08, 4.09, 6.1, 1.11],
             [5.12, 6.13, 7.14, 9.15]], 2, 57.6,
        ),
        "G2b": (
            [[2, 2.01, 2.02, 7.03], [9.04, 9.05, 7.06, 9.07], [8.08, 1.09, 2.1, 8.11],
             [1.12, 9.13, 8.14, 9.15]], 2, 58.6,
        ),
        "G3": (
            np.where(i % 4 == 3 * j % 4, 10 + 0.1 * ((3 * i + 5 * j) % 7), 0.1 * (i * j % 5)),
            4, 164.9,
        ),
        "G6": (
            np.array([[5, 1, 4, 0, 6, 1, 5, 1], [1, 6, 0, 5, 1, 4, 2, 7], [4, 2, 6, 1, 5, 0, 6, 0],
                      [0, 5, 1, 7, 2, 6, 1, 4]]) + steps, 2, 85.248,
        ),
    }  # fmt: skip
    rows = []
    for name, (scores, groups, optimum) in cases.items():
        values = [partition(scores, groups, m).retained for m in ("same", "sort", "grps")]
        ours = partition(scores, groups).retained
        rows.append([name, *(f"{v:.3f}" for v in (*values, ours)), f"{optimum:.3f}"])
    table("Small matrices", ["case", "same", "sort", "GRPS 10", "assignment", "optimum"], rows)


def exhaustive(args: argparse.Namespace) -> None:
    rows = []
    for side, groups in [(4, 2), (4, 4), (6, 2), (6, 3), (8, 2), (8, 4)]:
        hits = {"GRPS 100": 0, "assignment": 0, "search alone": 0}
        for seed in range(args.samples * 5):
            scores = kernels(seed, side, side, 1 + 2 * (seed % 2))
            enough = partition(scores, groups).retained * (1 - 1e-12)
            optimum = brute_force(scores, groups)
            assert enough <= optimum * (1 + 1e-12)
            hits["assignment"] += enough >= optimum * (1 - 2e-12)
            hits["GRPS 100"] += partition(scores, groups, "grps", 100).retained >= enough
            enumerate_small, solve.solve_exactly = solve.solve_exactly, lambda *_: None
            try:
                hits["search alone"] += partition(scores, groups).retained >= enough
            finally:
                solve.solve_exactly = enumerate_small
        rows.append([f"{side}x{side}", groups, *(f"{h / args.samples / 5:.0%}" for h in
                                                hits.values())])  # fmt: skip
    title = f"Optimal against exhaustive search ({args.samples * 5} random matrices a row)"
    note = "search alone"
    table(title, ["size", "G", "GRPS 100", "assignment", note], rows)


def brute_force(scores: np.ndarray, groups: int) -> float:
    """Every split of rows with every split of columns, matched by every order: nothing clever."""
    from itertools import permutations

    from nni_gconv.groupconv.partition.exact import balanced_splits

    side = len(scores)
    member = np.zeros((len(splits := balanced_splits(side, groups)), groups, side))
    np.put_along_axis(member, splits, 1, axis=2)
    mass = np.einsum("agf,fc,bhc->abgh", member, scores, member, optimize=True)
    kept = [mass[..., range(groups), order].sum(axis=-1) for order in permutations(range(groups))]
    return float(np.max(kept))


def hidden(args: argparse.Namespace) -> None:
    rows = []
    for groups in (8, 16):
        for name, options in METHODS.items():
            runs = [timed(planted(s, 128, groups), groups, **options) for s in range(args.samples)]
            share = [p.fraction for p, _ in runs]
            exact = mean(f >= 1 - 1e-9 for f in share)
            rows.append([groups, name, f"{mean(share):.4f}", f"{exact:.0%}",
                         f"{1e3 * mean(t for _, t in runs):.1f}"])  # fmt: skip
    header = ["G", "method", "retained", "exact", "ms"]
    table(f"Hidden blocks, S=128, {args.samples} samples", header, rows)


def dense(args: argparse.Namespace) -> None:
    rows, gains = [], {1: [], 3: []}
    for size in (1, 3):
        for side, groups in [(64, 4), (128, 8), (128, 16), (256, 16)]:
            samples = [kernels(s, side, side, size) for s in range(args.samples)]
            runs = {
                name: [timed(s, groups, **options) for s in samples]
                for name, options in METHODS.items()
            }
            kept = {n: mean(p.fraction for p, _ in r) for n, r in runs.items()}
            spent = {n: mean(t for _, t in r) for n, r in runs.items()}
            gain = mean(
                o.retained / g.retained
                for (o, _), (g, _) in zip(runs["assignment"], runs["GRPS 100"], strict=True)
            )
            gains[size].append(gain)
            ceiling = mean(
                upper_bound(s, groups, p.retained, args.bound_steps) / g.retained
                for s, (p, _), (g, _) in zip(
                    samples[:2], runs["assignment"], runs["GRPS 100"], strict=False
                )
            )
            rows.append([
                f"{size}x{size}", f"{side}/{groups}", *(f"{kept[n]:.4f}" for n in METHODS),
                f"{gain:.4f}", f"{ceiling:.4f}", *(f"{1e3 * spent[n]:.1f}" for n in METHODS),
                f"{spent['no annealing'] / spent['GRPS 100']:.1f}",
                f"{spent['assignment'] / spent['GRPS 100']:.0f}",
            ])  # fmt: skip
    header = ["kernel", "S/G", *METHODS, "ours / GRPS 100", "proven ceiling",
              *(f"ms {n}" for n in METHODS), "time ratio, no annealing", "time ratio"]  # fmt: skip
    table(f"Dense Gaussian kernels, {args.samples} samples: retained fraction", header, rows)
    print(
        "\nMean of ours / GRPS 100: "
        + ", ".join(f"{size}x{size} kernels {mean(g):.4f}" for size, g in gains.items())
        + f". The ceiling (2 samples, {args.bound_steps} dual steps) is what no solver can pass."
    )


def resnet50(args: argparse.Namespace) -> None:
    import torch
    import torchvision

    torch.manual_seed(args.seed)
    model = torchvision.models.resnet50(weights=args.weights)
    network(f"ResNet-50 ({args.weights or 'random initialisation'})", model, args.workers)


def pretrained(args: argparse.Namespace) -> None:
    if args.cifar is None:
        print("\npretrained: left out, it needs --cifar")
        return
    from nni_gconv.training.zoo import create_model

    for name, (model, file) in PRETRAINED.items():
        loaded = create_model(model, num_classes=10, weights=str(args.cifar / file))
        network(f"{name}, pretrained on CIFAR-10", loaded, args.workers)


def network(title: str, model, workers: int) -> None:
    """Retained share of all convolutions that G divides, and the time for all of them."""
    import torch

    scores = [kernel_norms(m.weight).detach() for m in model.modules()
              if isinstance(m, torch.nn.Conv2d) and m.groups == 1]  # fmt: skip
    rows, seconds, work = [], dict.fromkeys(METHODS, 0.0), 0.0
    for groups in (2, 4, 8, 16):
        layers = [s for s in scores if not (s.shape[0] % groups or s.shape[1] % groups)]
        share, spent = {}, {}
        for name, options in METHODS.items():
            start, used = time.perf_counter(), time.process_time()
            results = partition_many(layers, groups, workers=workers, **options)
            spent[name] = time.perf_counter() - start
            cpu = time.process_time() - used  # of all threads: of the last method, ours
            seconds[name] += spent[name]
            share[name] = sum(p.retained for p in results) / sum(p.total for p in results)
        ceiling = sum(p.bound for p in results) / sum(p.total for p in results)
        rows.append([groups, len(layers), *(f"{share[n]:.2%}" for n in METHODS), f"{ceiling:.2%}",
                     *(f"{spent[n]:.1f}" for n in METHODS), f"{cpu:.1f}"])  # fmt: skip
        work += cpu
    blank = [""] * (len(METHODS) + 2)
    rows.append(["all", *blank, *(f"{seconds[n]:.1f}" for n in METHODS), f"{work:.1f}"])
    header = ["G", "layers", *METHODS, "at most", *(f"s {n}" for n in METHODS), "CPU s assignment"]
    table(f"{title}, {workers} workers", header, rows)


TABLES = {"vectors": vectors, "exhaustive": exhaustive, "planted": hidden, "dense": dense,
          "resnet50": resnet50, "pretrained": pretrained}  # fmt: skip


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return (f"{processor()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}; "
            f"Python {platform.python_version()}, numpy {np.__version__}, "
            f"scipy {scipy.__version__}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES))
    parser.add_argument("--samples", type=int, default=10, help="matrices a row; seeds 0, 1, ...")
    parser.add_argument("--bound-steps", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2, help="threads for resnet50")
    parser.add_argument("--weights", default=None, help="torchvision weights, for example DEFAULT")
    parser.add_argument("--cifar", type=Path, help="folder of the files of `pretrained`")
    parser.add_argument("--seed", type=int, default=0, help="of the random ResNet-50")
    args = parser.parse_args()
    print(f"{machine()}; sample seeds 0..{args.samples - 1}, solver seed 0")
    for name in args.only:
        TABLES[name](args)


if __name__ == "__main__":
    main()
