"""Accuracy without any training: what is left of pretrained CIFAR-10 networks when they are cut.

    python benchmarks/oneshot.py DATA WEIGHTS
    python benchmarks/oneshot.py DATA WEIGHTS --networks resnet20b --macs 0.5 --only "L1, uniform"
    python benchmarks/oneshot.py --docs

DATA holds the four arrays that the `cifar10` loader reads; WEIGHTS the files that
benchmarks/pretrained.py names. Every row is cut by 1,024 training images at most, nothing is
trained, and all 10,000 test images are looked at once: as cut, after the batch norms' statistics
were estimated anew on the same images, and, for our rows, after reconstruction. Torch-Pruning's
criteria (pip install torch-pruning) are run on the networks it can follow, those with 1x1
shortcuts. Rows that stand in benchmarks/oneshot.json already are not run again, so a run that was
stopped goes on. --docs writes the tables and the picture of docs/oneshot.md from the rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import fill
from pretrained import NETWORKS, Network
from rich.console import Console
from torch import Tensor, nn

from nni_gconv import ModelSpeedup, recalibrate_bn, reconstruct
from nni_gconv.display import picture
from nni_gconv.files import write_json
from nni_gconv.profiling import count
from nni_gconv.pruning import Calibration
from nni_gconv.pruning.registry import find_method
from nni_gconv.training.zoo import create_model

HERE = Path(__file__).parent
ROWS = HERE / "oneshot.json"
DOCS = HERE.parent / "docs"
#: Network -> shares of the MACs, group counts.
POINTS: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {
    "resnet20b": ((0.9, 0.7, 0.5, 0.4, 0.3), (2, 4, 8)),
    "resnet56b": ((0.9, 0.7, 0.5, 0.4, 0.3), (2, 4)),
    "resnet20": ((0.9, 0.7, 0.5, 0.4, 0.3), ()),
    "resnet56": ((0.9, 0.7, 0.5, 0.4, 0.3), ()),
}
CONVS = [{"op_types": ["Conv2d"]}]
#: Name -> method, options. All layers; "global" ranks them together, else all lose equal shares.
CHANNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "L1, uniform": ("magnitude", {"norm": "l1", "ranking": "uniform"}),
    "L2, global": ("magnitude", {"norm": "l2", "ranking": "global"}),
    "FPGM, uniform": ("fpgm", {}),
    "BN scale, global": ("slimming", {}),
    "Taylor, global": ("taylor", {"ranking": "global"}),
    "second order, uniform": ("second_order", {"allocation": "uniform"}),
    "second order, streams too": ("second_order", {"streams": "cut"}),
}
#: The same on the first convolution of every block alone: streams keep their width.
INNER = {
    "L1, inner": ("magnitude", {"norm": "l1", "ranking": "uniform"}),
    "second order, inner, by error": ("second_order", {}),
    "second order, inner, exact": ("second_order", {"allocation": "exact"}),
}
#: How every 3x3 convolution behind the first is split.
GROUPS: dict[str, dict[str, Any]] = {
    "by error": {"criterion": "error"},
    "by norms": {"sharing": "none"},
    "by norms, shared": {"sharing": "blocks"},
}
PEERS = ("L2", "Taylor", "Hessian")
STYLES = ("local", "global", "isomorphic")
_console = Console(stderr=True)


class Bench:
    """One network, its calibration images and the test images."""

    def __init__(self, network: Network, data: Path, weights: Path, images: int) -> None:
        self.model = create_model(
            network.model, num_classes=10, weights=str(weights / network.file)
        ).eval()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in network.normalize)

        def read(part: str, where: Any) -> tuple[Tensor, Tensor]:
            x = np.load(data / f"{part}_x.npy", mmap_mode="r")[where]
            y = np.load(data / f"{part}_y.npy", mmap_mode="r")[where]
            pixels = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).float() / 255
            return (pixels - mean) / std, torch.from_numpy(np.array(y)).long()

        chosen = np.sort(np.random.default_rng(0).choice(50_000, images, replace=False))
        self.images, self.labels = read("train", chosen)
        self.test = read("test", slice(None))
        self.calibration = Calibration(
            zip(self.images.split(256), self.labels.split(256), strict=True), images=images
        )
        self.dense_macs = count(self.model, self.images[:1]).macs

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Top-1 of all test images, in %."""
        model.eval()
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(self.test[0].split(500), self.test[1].split(500), strict=True)
        )
        return round(100 * right / len(self.test[1]), 2)

    def small(self, dense: nn.Module, masks: Any) -> tuple[nn.Module, float]:
        """Cut a copy; return it and its share of the dense MACs."""
        example = self.images[:1]
        model = ModelSpeedup(copy.deepcopy(dense), example, masks).speedup_model()
        return model, count(model, example).macs / self.dense_macs

    def row(self, masks: Any, model: nn.Module) -> dict[str, Any]:
        """Accuracies with these masks; `model` has its dense weights and is changed."""
        small, macs = self.small(model, masks)
        found = {"macs": round(macs, 4), "cut": self.accuracy(small)}
        recalibrate_bn(small, self.images.split(256))
        found["bn"] = self.accuracy(small)
        begin = time.process_time()
        done = reconstruct(model, masks, self.calibration)
        found["refit_seconds"] = round(time.process_time() - begin, 1)
        found["chosen"] = "refitted" * done.refitted + " + bn" * done.recalibrated
        found["reconstructed"] = self.accuracy(self.small(model, masks)[0])
        return found

    def prune(self, method: str, config: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Prune by a method of ours and measure what it left."""
        model = copy.deepcopy(self.model)
        kind = find_method(method)
        if "calibration" in kind.kind.Options.model_fields:
            options["calibration"] = self.calibration
        begin = time.process_time()
        pruner = kind.make(model, config, None, dummy_input=self.images[:1], **options)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        seconds = round(time.process_time() - begin, 1)
        return {**self.row(masks, model), "choice_seconds": seconds}

    def inner(self) -> list[dict[str, Any]]:
        """Select the first convolution of every block."""
        return [{"op_names": [n for n, _ in self.model.named_modules() if n.endswith(".conv1")]}]

    def grouped(self) -> list[str]:
        """Name the 3x3 convolutions behind the first."""
        return [
            n
            for n, m in self.model.named_modules()
            if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.in_channels > 3
        ]

    # -- Torch-Pruning ----------------------------------------------------------------------------

    def peer(self, criterion: Any, style: Any, macs: float) -> dict[str, Any]:
        """Prune with Torch-Pruning to a share of the MACs."""
        from torch_pruning_method import cut_to

        model, _ = cut_to(self.model, self.calibration, criterion, style, macs)
        found = count(model, self.images[:1]).macs / self.dense_macs
        row = {"macs": round(found, 4), "cut": self.accuracy(model)}
        recalibrate_bn(model, self.images.split(256))
        return {**row, "bn": self.accuracy(model)}


def jobs(
    bench: Bench, budgets: Sequence[float], counts: Sequence[int], peers: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name every row of a network and say how it is made."""
    for macs in budgets:
        for name, (method, more) in CHANNELS.items():
            yield (
                f"{name} | {macs}",
                lambda a=method, b=more, c=macs: bench.prune(a, CONVS, budget={"macs": c}, **b),
            )
        for name, (method, more) in INNER.items():
            yield (
                f"{name} | {macs}",
                lambda a=method, b=more, c=macs: bench.prune(
                    a, bench.inner(), budget={"macs": c}, **b
                ),
            )
        for criterion in PEERS if peers else ():
            for style in STYLES:
                name = f"Torch-Pruning {criterion}, {style}"
                yield f"{name} | {macs}", lambda a=criterion, b=style, c=macs: bench.peer(a, b, c)
    for groups in counts:
        for name, more in GROUPS.items():
            yield (
                f"{groups} groups, {name} | groups",
                lambda g=groups, m=more: bench.prune(
                    "gconv", [{"op_names": bench.grouped(), "num_groups": g}], **m
                ),
            )


def place(key: str) -> tuple[float, int]:
    """Order rows: larger budgets first, then as the script names them, groups last."""
    name, _, budget = key.partition(" | ")
    own = [*CHANNELS, *INNER]
    return -float(budget) if budget != "groups" else 0.0, own.index(name) if name in own else 99


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Write the rows as Markdown, one table a network."""
    lines = []
    for network in [name for name in POINTS if name in rows]:
        of = rows[network]
        lines += [f"## {network}, {of['dense']['accuracy']:.2f} % dense", ""]
        lines += ["| rows | MACs | as cut | + BN anew | reconstructed |", "|---|---|---|---|---|"]
        for key in sorted(of.keys() - {"dense"}, key=lambda key: (*place(key), key)):
            name, row = key.partition(" | ")[0], of[key]
            if "failed" in row:
                lines.append(f"| {name} | | | | {row['failed']} |")
                continue
            last = f"**{row['reconstructed']:.2f}**" if "reconstructed" in row else ""
            numbers = f"{row['macs']:.3f} | {row['cut']:.2f} | {row['bn']:.2f} | {last}"
            lines.append(f"| {name} | {numbers} |")
        lines.append("")
    return "\n".join(lines)


#: Rows of the picture: name, column, colour.
LINES = (
    ("second order, inner, by error", "reconstructed", "C0"),
    ("L1, uniform", "reconstructed", "C9"),
    ("L1, uniform", "bn", "0.6"),
)


def draw(of: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draw what is left at each budget: ours, L1, the best of the peer's rows, and groups."""
    named = {"reconstructed": "reconstructed", "bn": "norms estimated anew"}
    points: dict[str, dict[str, Any]] = {k: r for k, r in of.items() if "cut" in r}
    with picture(path, 7.0, 4.5) as figure:
        axes = figure.subplots()
        axes.axhline(of["dense"]["accuracy"], color="0.3", ls=":", label="dense")
        for name, column, colour in LINES:
            rows = [r for k, r in points.items() if k.startswith(f"{name} |") and column in r]
            found = sorted((r["macs"], r[column]) for r in rows)
            label = f"{name}, {named[column]}"
            axes.plot(*zip(*found, strict=True), "o-", color=colour, label=label)
        peers: dict[str, tuple[float, float]] = {}
        for key, row in points.items():
            if key.startswith("Torch-Pruning"):
                budget = key.rpartition(" | ")[2]
                best = peers.get(budget, (0.0, 0.0))
                peers[budget] = max(
                    best, (row["macs"], max(row["cut"], row["bn"])), key=lambda p: p[1]
                )
        if peers:
            label = "best of Torch-Pruning, with or without norms anew"
            axes.plot(*zip(*sorted(peers.values()), strict=True), "s--", color="C3", label=label)
        for key, row in points.items():
            if "groups, by error" in key:
                spot = row["macs"], row["reconstructed"]
                axes.plot(*spot, "D", color="C2")
                axes.annotate(key.partition(",")[0], spot, (6, -4), textcoords="offset points")
        axes.set(xlabel="MACs left", ylabel="test accuracy in %, nothing trained", title=title)
        axes.legend(fontsize=8, loc="lower right")


def run(options: argparse.Namespace) -> None:
    """Run the rows that are asked for and not there, and keep each as it comes."""
    rows = read()
    for name in options.networks or POINTS:
        network = next(n for n in NETWORKS if n.model == name)
        bench = Bench(network, options.data, options.weights, options.images)
        own = rows.setdefault(name, {})
        own.setdefault("dense", {"accuracy": bench.accuracy(bench.model)})
        budgets, counts = POINTS[name]
        if options.macs is not None:
            budgets = options.macs
        if options.groups is not None:
            counts = options.groups
        for key, make in jobs(bench, budgets, counts, peers=name.endswith("b")):
            if key in own or (options.only and not any(word in key for word in options.only)):
                continue
            try:
                own[key] = make()
            except Exception as error:  # a peer's, or a method that has nothing to cut
                own[key] = {"failed": (str(error).splitlines() or [type(error).__name__])[0][:120]}
            _console.print(f"{name}: {key}: {own[key]}", markup=False, highlight=False)
            write_json(ROWS, rows)


def read() -> dict[str, dict[str, Any]]:
    """Read the rows that are there."""
    return json.loads(ROWS.read_text()) if ROWS.is_file() else {}


def document() -> None:
    """Write the tables and the picture of docs/oneshot.md from the rows that are there."""
    begin, end = "<!-- rows: written by benchmarks/oneshot.py -->\n", "<!-- end of rows -->"
    name = "resnet20b"
    rows = read()
    draw(rows[name], DOCS / "images" / "oneshot.png", f"{name}: what is left without any training")
    fill(DOCS / "oneshot.md", begin, end, f"\n{table(rows)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--networks", nargs="+", choices=POINTS, help="in place of all")
    parser.add_argument("--macs", nargs="*", type=float, help="in place of the network's own")
    parser.add_argument("--groups", nargs="*", type=int, help="in place of the network's own")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--docs", action="store_true", help="write docs/oneshot.md again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.data is not None and options.weights is not None:
        run(options)
    if options.docs:
        document()


if __name__ == "__main__":
    main()
