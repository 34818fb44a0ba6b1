"""How long do small networks take? Dense and small ones timed in turn, back-end by back-end.

    pip install torch-pruning                 # for its rows alone
    python benchmarks/latency.py --networks nets --out docs/latency.md
    python benchmarks/latency.py --networks nets --backends onnxruntime --out docs/latency.md

For each network, batch and back-end: the dense network, and small ones of it (channels cut to half
and to a quarter of the MACs, Torch-Pruning's at equal MACs, group convolutions in every layer that
allows them) run in turn, A B C A B C, and every time is divided by that of the dense network of the
same round: what slows the machine for a while slows neighbours alike. Medians with 95 % intervals
of a bootstrap over the rounds. Weights are random: time does not depend on them. In eager mode each
network is timed as it is in both memory formats and in its quickest form (`nni_gconv.optimize`);
the dense one with norms folded too. Rows that benchmarks/latency.csv holds are not timed again;
--cache names another file, for another machine.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from latency_networks import kinds, network
from latency_tables import write_page
from speedup_models import write_cache
from torch import Tensor, nn

from nni_gconv import optimize
from nni_gconv.inference import fold_batch_norms, report_of
from nni_gconv.profiling import (
    clock_for,
    count,
    cpu_threads,
    in_turn,
    machine_of,
    measuring,
    milliseconds,
    on_backend,
    paired_ratio,
)

ROWS = Path(__file__).with_name("latency.csv")
MODELS = ["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vgg16_bn"]
FIELDS = ["device", "model", "batch", "backend", "kind", "form", "macs_left", "ms", "ratio", "low",
          "high", "folded", "folded_low", "folded_high", "rounds", "groups_paid"]  # fmt: skip
Variant = tuple[str, str]


def last(model: nn.Module) -> nn.Module:
    """Return a model in the channels-last format."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def eager(
    nets: Mapping[str, nn.Module], x: Tensor, args: argparse.Namespace
) -> tuple[dict[Variant, nn.Module], dict[str, str]]:
    """Return every network in every form that eager mode is timed in; and where groups paid."""
    import copy

    made: dict[Variant, nn.Module] = {}
    paid = {}
    for kind, net in nets.items():
        made[kind, "contiguous"] = net
        made[kind, "channels last"] = last(copy.deepcopy(net))
        if kind == "dense":
            made[kind, "folded, contiguous"] = fold_batch_norms(net, x)
            made[kind, "folded, channels last"] = last(fold_batch_norms(net, x))
        fast = optimize(net, x, threads=args.threads, max_seconds=args.optimize_seconds)
        made[kind, "optimized"] = fast
        paid[kind] = str(report_of(fast).groups_paid)
    return made, paid


def measure(name: str, batch: int, backend: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one network and its small ones with one batch on one back-end."""
    nets, said = {}, []
    for kind in ["dense", *args.kinds]:
        try:
            nets[kind] = network(f"torchvision:{name}", kind, args.networks).to(args.device)
        except Exception as error:  # a kind that this network has not
            said.append(f"{name}, {kind}: {str(error).splitlines()[0][:150]}")
    x = torch.randn(batch, 3, 224, 224, device=args.device)
    paid: dict[str, str] = {}
    if backend == "eager":
        made, paid = eager(nets, x, args)
    else:
        made = {
            (kind, backend): on_backend(net, x, backend, threads=args.threads)
            for kind, net in nets.items()
        }
    calls = {
        "/".join(variant): partial(
            milliseconds, model, _laid_out(x, variant[1]), clock_for(args.threads)
        )
        for variant, model in made.items()
    }
    with measuring(*made.values()), cpu_threads(args.threads):
        times = in_turn(
            calls, warmup=1, min_runs=args.runs, min_seconds=args.seconds,
            max_seconds=args.max_seconds,
        )  # fmt: skip
    for line in said:
        print(line, flush=True)
    dense = count(nets["dense"], x).macs
    left = {kind: count(net, x).macs / dense for kind, net in nets.items()}
    device = machine_of(args.device, threads=args.threads)["device"]
    base = {"device": device, "model": name, "batch": batch, "backend": backend}
    return [{**base, **row, "groups_paid": paid.get(row["kind"], "")} for row in _rows(times, left)]


def _laid_out(x: Tensor, form: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if "last" in form else x


def _rows(times: Mapping[str, list[float]], left: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Ratios to the dense network as it is, and to the quicker of it with norms folded."""
    dense = next(times[key] for key in times if key.startswith("dense/"))
    folded = [key for key in times if key.startswith("dense/folded")]
    best = times[min(folded, key=lambda key: sorted(times[key])[len(times[key]) // 2])] if (
        folded
    ) else dense  # fmt: skip
    for key, own in times.items():
        kind, _, form = key.partition("/")
        row = dict(zip(("ratio", "low", "high"), paired_ratio(own, dense), strict=True))
        ends = ("folded", "folded_low", "folded_high")
        row |= dict(zip(ends, paired_ratio(own, best), strict=True))
        middle = sorted(own)[len(own) // 2]
        yield {
            "kind": kind, "form": form, "macs_left": left[kind], "ms": middle, **row,
            "rounds": len(own),
        }  # fmt: skip


def read_cache(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--kinds", nargs="+", default=kinds(), choices=kinds())
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--backends", nargs="+", default=["eager"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15, help="rounds at least")
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, a network")
    parser.add_argument("--max-seconds", type=float, default=150.0, help="at most, all in turn")
    parser.add_argument("--optimize-seconds", type=float, default=6.0)
    parser.add_argument("--cache", type=Path, default=ROWS, help="CSV file of rows")
    parser.add_argument("--networks", type=Path, default=Path("nets"), help="small networks")
    parser.add_argument("--out", type=Path, help="Markdown page whose tables are replaced")
    args = parser.parse_args()
    args.networks.mkdir(parents=True, exist_ok=True)
    rows = read_cache(args.cache)
    for backend in args.backends:
        for batch in args.batches:
            for name in args.models:
                case = (name, str(batch), backend)
                if any((r["model"], str(r["batch"]), r["backend"]) == case for r in rows):
                    continue
                begun = time.perf_counter()
                rows += measure(name, batch, backend, args)
                write_cache(args.cache, FIELDS, rows)
                print(*case, f"{time.perf_counter() - begun:.0f} s", flush=True)
    if args.out:
        write_page(args.out, read_cache(args.cache), args.threads)


if __name__ == "__main__":
    main()
