"""Coverage, exactness and speed of ModelSpeedup, beside NNI's ModelSpeedup and Torch-Pruning.

    python benchmarks/speedup.py --cache speedup.csv --peers some --out docs/coverage.md
    python benchmarks/speedup.py --models resnet18,vgg16_bn --peers all

Every model runs in a process of its own, one after the other: ours first, then Torch-Pruning, then
NNI. Half of the channels of every coupled set are masked, chosen at random; batch norms are given
random statistics, and what starts at zero random weights, so that no branch is without effect.
Masked and small network are compared here, in float64, independently of the library's own
verification. Seconds are CPU time of one call on a model in memory, with one thread: what else
the machine does hardly changes them.

NNI's ModelSpeedup is given the same masks and, since it does not start on today's torch, an fx
graph. Torch-Pruning removes the same share of channels by its own choice and checks nothing. A
peer that has not finished after --limit seconds of CPU time is stopped.

Models whose rows the cache file holds are not run again; delete a line to repeat one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import json
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import fill
from speedup_models import (
    COMPARED,
    build,
    difference,
    enliven,
    half_masks,
    leaves,
    mask,
    model_names,
    write_cache,
)

#: Above so many parameters NNI, which keeps several copies and masks of each, is not started.
NNI_PARAMS = 150e6
PEERS = ("torch_pruning", "nni")
FIELDS = ["model", "tool", "side", "params", "macs", "params_small", "macs_small", "difference",
          "seconds", "verified", "peak_mib", "notes", "error"]  # fmt: skip


def timed(run: Any) -> tuple[Any, float]:
    begun = time.process_time()
    result = run()
    return result, time.process_time() - begun


class TimeLimit(BaseException):
    """Not an Exception: libraries catch those."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeLimit when so much CPU time of this process has passed."""

    def stop(*_: Any) -> None:
        raise TimeLimit(f"over {seconds:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def ours(model: Any, dummy: Any, masks: Any) -> dict[str, Any]:
    from nni_gconv import ModelSpeedup
    from nni_gconv.profiling import count

    dense = count(model, dummy)
    row: dict[str, Any] = {"params": dense.params, "macs": dense.macs}
    for column, verify in (("verified", True), ("seconds", False)):
        small = None  # not two at a time
        small = copy.deepcopy(model)
        speedup = ModelSpeedup(small, dummy, masks, verify=verify)
        _, row[column] = timed(speedup.speedup_model)
    counts = count(small, dummy)
    row |= {"params_small": counts.params, "macs_small": counts.macs}
    row["notes"] = len(speedup.report().notes)
    row["difference"] = difference(mask(copy.deepcopy(model), masks), small, dummy)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def torch_pruning(model: Any, dummy: Any) -> dict[str, Any]:
    import torch
    import torch_pruning as tp

    from nni_gconv.profiling import count

    working = copy.deepcopy(model)
    outputs = {t.shape[-1] for t in leaves(working(dummy))}
    ignored = [
        m for m in working.modules() if isinstance(m, torch.nn.Linear) and m.out_features in outputs
    ]

    def run() -> None:
        pruner = tp.pruner.MagnitudePruner(
            working, dummy, tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
            ignored_layers=ignored,
        )  # fmt: skip
        pruner.step()

    _, seconds = timed(run)
    working(dummy)
    counts = count(working, dummy)
    return {"seconds": seconds, "params_small": counts.params, "macs_small": counts.macs}


def nni(model: Any, dummy: Any, masks: Any) -> dict[str, Any]:
    import torch
    from nni.compression.speedup import ModelSpeedup

    from nni_gconv.profiling import count

    if sum(p.numel() for p in model.parameters()) > NNI_PARAMS:
        raise RuntimeError("not started: too large for NNI's copies")
    working = mask(copy.deepcopy(model), masks)
    given = {m: {t: v.float() for t, v in targets.items()} for m, targets in masks.items()}

    def run() -> Any:
        graph = torch.fx.symbolic_trace(working)
        return ModelSpeedup(working, dummy, given, graph_module=graph).speedup_model()

    small, seconds = timed(run)
    counts = count(small, dummy)
    return {
        "seconds": seconds,
        "params_small": counts.params,
        "macs_small": counts.macs,
        "difference": difference(mask(copy.deepcopy(model), masks), small, dummy),
    }


def child(name: str, tools: list[str], limit: float) -> None:
    """Run tools on one model and print a line of JSON for each."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, dummy = build(name)
    masks = half_masks(model, dummy)
    enliven(model, dummy, masks)
    calls = {
        "ours": lambda: ours(model, dummy, masks),
        "torch_pruning": lambda: torch_pruning(model, dummy),
        "nni": lambda: nni(model, dummy, masks),
    }
    for tool in tools:
        row: dict[str, Any] = {"model": name, "tool": tool, "side": dummy.shape[-1]}
        try:
            with limited(limit if tool != "ours" else 3600):
                row |= calls[tool]()
        except TimeLimit as error:
            row["error"] = str(error)
        except Exception as error:  # whatever a library raises is a result
            first = (str(error).strip().splitlines() or [""])[0]
            row["error"] = f"{type(error).__name__}: {first[:160]}"
        print("ROW " + json.dumps(row), flush=True)


def run_model(name: str, tools: list[str], limit: float) -> list[dict[str, Any]]:
    """Run tools on one model in a new process."""
    command = [sys.executable, __file__, "--child", name, "--tools", ",".join(tools)]
    done = subprocess.run(
        [*command, "--limit", str(limit)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        error = f"the process ended with {done.returncode}: {reason[:160]}"
        return [{"model": name, "tool": tools[0], "error": error}]
    return [json.loads(line[4:]) for line in lines]


def read_cache(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {k: v if k in ("model", "tool", "error") else float(v) for k, v in row.items() if v}
            for row in csv.DictReader(file)
        ]


def table(rows: list[dict[str, Any]]) -> str:
    peers = any(row["tool"] in PEERS for row in rows)
    head = ["model", "input", "params", "MACs", "params left", "MACs left", "difference", "s",
            "s verified"]  # fmt: skip
    head += ["Torch-Pruning", "NNI"] if peers else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["tool"]] = row
    for model, tools in found.items():
        cells = [model.removeprefix("torchvision:"), *our_cells(tools.get("ours", {}))]
        if peers:
            cells += [peer_cell(tools.get("torch_pruning")), peer_cell(tools.get("nni"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def our_cells(row: dict[str, Any]) -> list[str]:
    if "difference" not in row:
        return [row.get("error", "not run"), *[""] * 7]
    return [
        f"{row['side']:.0f}", f"{row['params'] / 1e6:.2f}M", f"{row['macs'] / 1e6:.0f}M",
        f"{row['params_small'] / row['params']:.3f}", f"{row['macs_small'] / row['macs']:.3f}",
        f"{row['difference']:.0e}", f"{row['seconds']:.2f}", f"{row['verified']:.2f}",
    ]  # fmt: skip


def peer_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        kind = row["error"]
        return kind if kind.startswith("over") else f"fails: {kind.split(':')[0]}"
    wrong = row.get("difference", 0)
    return f"{row['seconds']:.2f} s" + (f", differs {wrong:.0e}" if wrong > 1e-6 else "")


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Say in words what the table comes to."""
    tools: dict[str, dict[str, dict[str, Any]]] = {"ours": {}, "torch_pruning": {}, "nni": {}}
    for row in rows:
        tools[row["tool"]][row["model"]] = row
    mine = {m: r for m, r in tools["ours"].items() if "difference" in r}
    if not mine:
        return []
    equal = [m for m, r in mine.items() if r["difference"] <= 1e-9]
    largest = max(r["difference"] for r in mine.values())
    plain, verified = (
        statistics.median(r[column] for r in mine.values()) for column in ("seconds", "verified")
    )
    lines = [
        f"{len(tools['ours'])} models: {len(mine)} traced and cut, {len(equal)} equal to the "
        f"masked network to 1e-9 (largest difference {largest:.0e}).",
        f"Median seconds: {plain:.2f}, with verification {verified:.2f}.",
    ]
    for tool, name in (("nni", "NNI's ModelSpeedup"), ("torch_pruning", "Torch-Pruning")):
        theirs = tools[tool]
        if not theirs:
            continue
        done = {m: r for m, r in theirs.items() if "seconds" in r and m in mine}
        wrong = [m for m, r in done.items() if r.get("difference", 0) > 1e-6]
        over = [m for m, r in theirs.items() if r.get("error", "").startswith("over")]
        said = f"{name}: {len(done)} of {len(theirs)} models finish"
        said += f", {len(wrong)} of them with other outputs" if tool == "nni" else ""
        said += f"; {len(over)} stopped at the limit" if over else ""
        if done:
            ratios = [
                statistics.median(r["seconds"] / mine[m][c] for m, r in done.items())
                for c in ("seconds", "verified")
            ]
            said += (f"; where it finishes its seconds over ours are {ratios[0]:.2f} in the median "
                     f"({ratios[1]:.2f} with our verification)")  # fmt: skip
        lines.append(said + ".")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="comma-separated names; default: all")
    parser.add_argument(
        "--peers",
        choices=("none", "some", "all"),
        default="none",
        help="run NNI and Torch-Pruning too, on a network or two of each family or on all",
    )
    parser.add_argument(
        "--limit", type=float, default=60, help="seconds of CPU time a peer may take"
    )
    parser.add_argument("--cache", type=Path, help="CSV file of rows; those in it are not repeated")
    parser.add_argument("--out", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--tools", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.tools.split(","), args.limit)
        return
    names = model_names()
    if args.models:
        wanted = args.models.split(",")
        names = [n for n in names if n in wanted or n.partition(":")[2] in wanted]
    rows = read_cache(args.cache)
    for name in names:
        compared = args.peers == "all" or (args.peers == "some" and name in COMPARED)
        tools = ["ours", *PEERS] if compared else ["ours"]
        if set(tools) <= {row["tool"] for row in rows if row["model"] == name}:
            continue
        made = run_model(name, tools, args.limit)
        rows = [row for row in rows if row["model"] != name] + made
        if args.cache:
            write_cache(args.cache, FIELDS, rows)
        print(table(made).splitlines()[-1], flush=True)
    rows = [row for name in names for row in rows if row["model"] == name]
    text = "\n".join([f"- {line}" for line in summary(rows)]) + "\n\n" + table(rows)
    print("\n" + text)
    if args.out:
        begin, end = "<!-- table -->\n", "<!-- end -->"
        machine = f"{platform.machine()}, one thread, peers stopped at {args.limit:g} s."
        fill(args.out, begin, end, f"{machine}\n\n{text}\n")


if __name__ == "__main__":
    main()
