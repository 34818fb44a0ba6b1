"""Which CNNs of timm, pytorchcv and segmentation-models-pytorch can be cut, and are they equal.

    pip install timm pytorchcv segmentation-models-pytorch     # for this benchmark alone
    python benchmarks/sweep.py --each 1 --cache sweep.csv
    python benchmarks/sweep.py --each 3 --peers --out docs/coverage.md

Every network runs in a process of its own, with limits of time and memory. Half of the channels of
every coupled set are masked, chosen at random, norms have random scales and statistics, and masked
and small network are compared here, in float64, not by the library's own check. Networks whose rows
benchmarks/sweep.csv holds are not run again; `--again` repeats some, `--cache` names another file.
The text is of all its rows.

With `--peers` Torch-Pruning gets the masked network and the same share: the channels that are zero
are the ones that it finds least important, so that what it makes can be compared too.
"""

from __future__ import annotations

import argparse
import copy
import csv
import multiprocessing
import re
import resource
import signal
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pages import fill
from speedup_models import difference, enliven, half_masks, leaves, mask, write_cache
from sweep_models import build, names

FIELDS = ["model", "params", "left", "difference", "seconds", "reasons", "error",
          "peer_left", "peer_difference", "peer_error"]  # fmt: skip
ROWS = Path(__file__).with_name("sweep.csv")
#: A network that keeps more of its parameters has to say why.
MUCH = 0.6


def child(name: str, model: Any, dummy: Any) -> dict[str, Any]:
    """Cut one network in this process and compare."""
    from nni_gconv import ModelSpeedup
    from nni_gconv.graph import Coupling

    params = sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {"model": name, "params": params}
    row["reasons"] = main_reasons(Coupling.trace(model, dummy))
    masks = half_masks(model, dummy)
    enliven(model, dummy, masks)
    small = copy.deepcopy(model)
    begun = time.process_time()
    speedup = ModelSpeedup(small, dummy, masks, verify=False)
    speedup.speedup_model()
    row["seconds"] = time.process_time() - begun
    # What nothing pins may stay all the same: the report of the cut says why.
    row["reasons"] = row["reasons"] or "; ".join(speedup.report().notes[:2])
    row["left"] = sum(p.numel() for p in small.parameters()) / params
    row["difference"] = difference(mask(copy.deepcopy(model), masks), small, dummy)
    return row


def main_reasons(coupling: Any) -> str:
    """Say why layers stay, the two reasons first that hold most parameters."""
    held: Counter[str] = Counter()
    for coupled in coupling.sets:
        if coupled.reason and coupled.reason != "an output of the model":
            for member in coupled.members:
                weight = coupling.graph.lookup(member.parameter)
                held[coupled.reason] += (
                    weight.numel() // weight.shape[member.dim] * len(member.rows)
                )
    for layer, where in coupling.channels.computed.items():
        weight = next(iter(coupling.graph.modules[layer].parameters(recurse=False)))
        held[f"weights that are computed {where}"] += weight.numel()
    return "; ".join(f"{reason} ({count})" for reason, count in held.most_common(2))


def peer(_: str, model: Any, dummy: Any) -> dict[str, Any]:
    """Let Torch-Pruning cut the masked network by the same share, and compare."""
    import torch
    import torch_pruning as tp

    masks = half_masks(model, dummy)
    enliven(model, dummy, masks)
    params = sum(p.numel() for p in model.parameters())
    masked = mask(model, masks)
    small = copy.deepcopy(masked)
    with torch.no_grad():
        outputs = {n for t in leaves(small(dummy)) for n in t.shape[1:2] + t.shape[-1:]}
    ignored = [
        m
        for m in small.modules()
        if getattr(m, "out_features", getattr(m, "out_channels", None)) in outputs
    ]
    importance = tp.importance.MagnitudeImportance(p=1)
    pruner = tp.pruner.MagnitudePruner(
        small, dummy, importance, pruning_ratio=0.5, ignored_layers=ignored
    )
    pruner.step()
    row = {"peer_left": sum(p.numel() for p in small.parameters()) / params}
    return {**row, "peer_difference": difference(masked, small, dummy)}


def run(
    task: Callable[..., dict[str, Any]], name: str, seconds: float, gigabytes: float
) -> dict[str, Any]:
    """Do a task for one network in a process of its own, forked from this one."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    # Forked, so that what takes longest, the import of all packages, is done once.
    process = context.Process(target=_limited, args=(send, task, name, seconds, gigabytes))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        process.join()
        over = process.exitcode == -signal.SIGXCPU
        return {"error": f"over {seconds:g} s" if over else f"ended with {process.exitcode}"}
    finally:
        process.join()


def _limited(
    send: Any, task: Callable[..., dict[str, Any]], name: str, seconds: float, gigabytes: float
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    warnings.simplefilter("ignore")
    send.send(_caught(task, name))


def read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("params", "left", "difference", "seconds", "peer_left", "peer_difference")
    return {
        row["model"]: {k: float(v) if k in numbers else v for k, v in row.items() if v}
        for row in rows
    }


def text(rows: list[dict[str, Any]]) -> str:
    """Counts, then what is refused, wrong or large, with the reason."""
    outside = [r for r in rows if r.get("error", "").startswith("not tried")]
    rows = [r for r in rows if r not in outside]
    through = [r for r in rows if "left" in r]
    cut = [r for r in through if r["left"] < 1]
    if not cut:
        return "nothing was cut"
    wrong = [r for r in through if not r["difference"] <= 1e-9]
    large = [r for r in through if r["left"] > MUCH]
    refused = [r for r in rows if "left" not in r]
    lines = [
        f"- {len(rows)} networks ({_share(rows)}); {len(outside)} could not be built or run.",
        f"- {len(cut)} became smaller ({len(cut) / len(rows):.1%}), {len(through) - len(cut)} lost "
        f"nothing. Of both {len(through) - len(wrong)} are equal to the masked network to 1e-9 "
        f"(largest difference of these "
        f"{max((r['difference'] for r in through if r not in wrong), default=0):.0e}), "
        f"{len(wrong)} are not.",
        f"- Of the parameters {statistics.median(r['left'] for r in through):.3f} are left in the "
        f"median; {len(large)} keep more than {MUCH}.",
    ]
    lines += _beside(through)
    for title, some in (
        ("Not equal", wrong),
        ("Refused", refused),
        (f"More than {MUCH} of the parameters left", large),
    ):
        if some:
            lines += ["", f"{title}:", "", "| network | left | why |", "|---|---|---|"]
            lines += [
                f"| {r['model']} | {r.get('left', 1):.2f} | "
                f"{r.get('error') or r.get('reasons', '')} |"
                for r in sorted(some, key=lambda r: r["model"])
            ]
    return "\n".join(lines)


def _beside(rows: list[dict[str, Any]]) -> list[str]:
    """Counts of Torch-Pruning, and ours on the networks that it was tried on."""
    tried = [r for r in rows if r.keys() & {"peer_left", "peer_error"}]
    ended = [r for r in tried if "peer_left" in r]
    if not ended:
        return []
    equal = [r for r in ended if r["peer_difference"] <= 1e-9]
    late = [r for r in tried if r.get("peer_error", "").startswith("over ")]
    ours = statistics.median(r["left"] for r in ended)
    theirs = statistics.median(r["peer_left"] for r in ended)
    some = "all" if len(tried) == len(rows) else len(tried)
    return [
        f"- Torch-Pruning was tried on {some} of these: it finishes on {len(ended)}, {len(late)} "
        f"take longer than the limit, and {len(equal)} are equal to 1e-9. Where it finishes "
        f"{theirs:.3f} of the parameters are left in the median, here {ours:.3f}. It chooses "
        "channels itself, those of least norm: where these are not the masked ones, outputs differ "
        "for that."
    ]


def _short(reason: str) -> str:
    """Give a reason without where packages are installed."""
    return re.sub(r"/\S*/site-packages/", "", reason).replace("|", "/")


def _share(rows: list[dict[str, Any]]) -> str:
    kinds = Counter(r["model"].partition(":")[0] for r in rows)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="comma-separated names; default: all that --each lists")
    parser.add_argument("--each", type=int, default=1, help="networks of each family")
    parser.add_argument("--seconds", type=float, default=200, help="limit of CPU time of each")
    parser.add_argument("--gigabytes", type=float, default=12, help="limit of address space")
    parser.add_argument("--cache", type=Path, default=ROWS)
    parser.add_argument("--out", type=Path, help="Markdown file whose text is replaced")
    parser.add_argument("--again", default="", help="comma-separated names to run once more")
    parser.add_argument("--peers", action="store_true", help="run Torch-Pruning too")
    args = parser.parse_args()
    _import_all()
    wanted = args.models.split(",") if args.models else names(args.each)
    rows, again = read(args.cache), set(args.again.split(","))
    for name in wanted:
        row = rows.get(name, {})
        todo = [] if row.keys() & {"left", "error"} and name not in again else [child]
        outside = row.get("error", "").startswith("not tried")
        if args.peers and not outside and not row.keys() & {"peer_left", "peer_error"}:
            todo.append(peer)
        for task in todo:
            found = run(task, name, args.seconds, args.gigabytes)
            found = {k: _short(v) if isinstance(v, str) else v for k, v in found.items()}
            if task is peer:
                error = found.pop("error", None)
                rows[name] |= found | ({"peer_error": error} if error else {})
            else:
                kept = {k: v for k, v in row.items() if k.startswith("peer")}
                rows[name] = {"model": name, **found, **kept}
        if todo:
            write_cache(args.cache, FIELDS, rows.values())
            print(rows[name], flush=True)
    said = text(list(rows.values()))
    print(said)
    if args.out:
        begin, end = "<!-- sweep -->\n", "<!-- end sweep -->"
        fill(args.out, begin, end, f"{said}\n")


def _import_all() -> None:
    """Import what every network needs, before processes are forked."""
    import segmentation_models_pytorch  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torch_pruning  # noqa: F401
    from pytorchcv import model_provider  # noqa: F401

    from nni_gconv import ModelSpeedup  # noqa: F401
    from nni_gconv.graph import Coupling  # noqa: F401

    torch.set_num_threads(1)


def _caught(task: Callable[..., dict[str, Any]], name: str) -> dict[str, Any]:
    try:
        model, dummy = build(name)
    except Exception as error:  # a package that does not run here is no result of ours
        return {"error": f"not tried: {type(error).__name__}: {_line(error)}"}
    try:
        return task(name, model, dummy)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {_line(error)}"}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


if __name__ == "__main__":
    main()
