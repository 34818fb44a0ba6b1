"""Ratios from sensitivity curves beside equal shares, at equal MACs and without fine-tuning.

    python benchmarks/sensitivity.py resnet20 --weights FILE --data FOLDER --output FOLDER

FILE holds a network of the zoo that was trained on CIFAR-10, FOLDER of --data train_x.npy,
train_y.npy, test_x.npy and test_y.npy. Curves are measured on --images held out of the training
images (which the network may have seen in its own training), the tables on them and on as many
test images. Writes each criterion's curves, picture and prune section to --output and prints
Markdown. A run that was killed goes on.

The pattern is Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
ICCV 2017, https://arxiv.org/abs/1708.06519, with a threshold for each layer: train VGG-16 with the
penalty (configs/slimming/cifar10-vgg16.yml), then

    python benchmarks/sensitivity.py vgg16 --weights masked.safetensors --criteria gamma,l1 ...
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
import yaml
from partition import machine, table
from torch import nn

from nni_gconv import ModelSpeedup, sensitivity
from nni_gconv.cli.networks.sensitivity import parse_ratios
from nni_gconv.display import advancing
from nni_gconv.profiling.costs import count
from nni_gconv.pruning.settings import PruneSettings, create_pruner
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.zoo import create_model

NORMALIZE = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "cifar": None,  # the data set's own
}


class Bench:
    """A dense network, images to score on, and what pruning does to both."""

    def __init__(self, args: argparse.Namespace) -> None:
        fraction = 0.5
        data = DataSettings(
            name="cifar10", root=args.data, eval_batch_size=250, val_fraction=fraction,
            train_size=round(args.images / fraction), test_size=args.images,
            normalize=NORMALIZE[args.normalize],
        )  # fmt: skip
        self.device = torch.device(args.device)
        self.loaders = make_loaders(load_data(data), data, seed=0, device=self.device)
        self.model = create_model(args.model, num_classes=10, weights=args.weights)
        self.model.to(self.device).eval()
        self.example = torch.zeros(1, 3, 32, 32, device=self.device)

    def pruned(self, settings: PruneSettings) -> nn.Module:
        """Return the small network of a prune section."""
        model = copy.deepcopy(self.model)
        pruner = create_pruner(settings, model, dummy_input=self.example)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        return ModelSpeedup(model, self.example, masks).speedup_model()

    def row(self, model: nn.Module, *titles: str) -> list[str]:
        """Return titles, costs and accuracies of a network."""
        own, dense = count(model, self.example), count(self.model, self.example)
        scores = [
            f"{100 * evaluate(model, loader, device=self.device).accuracy:.1f}"
            for loader in (self.loaders.val, self.loaders.test)
        ]
        return [
            *titles, f"{own.params / 1e6:.3f}M", f"{own.params / dense.params:.3f}",
            f"{own.macs / dense.macs:.3f}", *scores,
        ]  # fmt: skip


def one_criterion(bench: Bench, criterion: str, args: argparse.Namespace) -> list[list[str]]:
    folder = Path(args.output) / criterion
    start = time.perf_counter()
    with advancing(f"{criterion}: points") as progress:
        found = sensitivity(
            bench.model, bench.example, bench.loaders, criterion=criterion,
            ratios=parse_ratios(args.ratios), tolerance=args.tolerance,
            stop_below=args.stop_below, output=folder, progress=progress,
        )  # fmt: skip
    *_, section = found.save(folder)
    shown = sorted({p.ratio for curve in found.curves for p in curve.points})[1:]
    shown = [r for r in shown if args.shown is None or r in args.shown]
    rows = []
    for curve in found.curves:
        at = {p.ratio: f"{100 * p.accuracy:.1f}" for p in curve.points}
        ratio = curve.ratio(found.dense.accuracy, args.tolerance)
        cells = [at.get(r, "") for r in shown]
        rows.append([curve.name, curve.channels, *cells, f"{ratio:g}"])
    seconds = time.perf_counter() - start
    table(
        f"{criterion}: accuracy (%) by share of the set's channels removed",
        ["first layer of the set", "channels", *(f"{r:g}" for r in shown), "ratio"],
        rows,
    )
    print(f"\n{len(found.curves)} sets, {sum(len(c.points) for c in found.curves)} points, "
          f"{seconds:.0f} s")  # fmt: skip
    settings = yaml.safe_load(section.read_text())["prune"]
    if not settings["config_list"] or criterion == "random":
        return []
    lean = bench.row(bench.pruned(PruneSettings(**settings)), criterion, "by sensitivity")
    everywhere = PruneSettings(
        method=settings["method"],
        config_list=[{"op_types": ["Conv2d"]}],
        budget={"macs": found.together.macs_ratio},
    )
    return [lean, bench.row(bench.pruned(everywhere), criterion, "equal shares")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a network of the zoo: resnet20, resnet56, vgg16 ...")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--criteria", default="l1,fpgm,gamma,random")
    parser.add_argument("--ratios", default="0:0.95:0.05")
    parser.add_argument("--shown", type=parse_ratios, default=None, help="columns of the tables")
    parser.add_argument("--tolerance", type=float, default=0.001)
    parser.add_argument("--stop-below", type=float, default=None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--normalize", choices=NORMALIZE, default="imagenet")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    bench = Bench(args)
    print(f"{args.model}, {args.images} images, tolerance {args.tolerance:g}; {machine()}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    rows = [bench.row(bench.model, "", "dense")]
    for criterion in args.criteria.split(","):
        rows += one_criterion(bench, criterion, args)
    table(
        "Pruned, not fine-tuned",
        ["criterion", "ratios", "params", "left", "MACs left", "held-out (%)", "test (%)"],
        rows,
    )


if __name__ == "__main__":
    main()
