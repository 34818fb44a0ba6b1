"""Top-1 of public pretrained CIFAR-10 networks, loaded into this zoo, on the 10 000 test images.

python benchmarks/pretrained.py DATA WEIGHTS [--only resnet20 ...] [--images 2000] [--json OUT]

DATA holds test_x.npy (N, 32, 32, 3) uint8 and test_y.npy; WEIGHTS holds the files named below.
A file that is not there is passed over. The numbers prove that architecture, shortcut and key
names are those of the originals: one wrong pixel in a shortcut costs tens of points.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from nni_gconv.errors import DataError, NniGconvError
from nni_gconv.profiling.costs import count
from nni_gconv.training.zoo import create_model

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Network:
    """A file of weights: its model, the mean and deviation of its inputs, its published top-1."""

    file: str
    model: str
    normalize: tuple[tuple[float, ...], tuple[float, ...]]
    published: float | None
    source: str
    pruned: bool = False


AKAMASTER = "akamaster/pytorch_resnet_cifar10"
NETWORKS = [
    Network("resnet20_cifar10.safetensors", "resnet20", IMAGENET, 91.73, AKAMASTER),
    Network("resnet32_cifar10.safetensors", "resnet32", IMAGENET, 92.63, AKAMASTER),
    Network("resnet44_cifar10.safetensors", "resnet44", IMAGENET, 93.10, AKAMASTER),
    Network("resnet56_cifar10.safetensors", "resnet56", IMAGENET, 93.39, AKAMASTER),
    Network(
        "cifar10_resnet56b_torchpruning_groupsl_dense.pt",
        "resnet56b",
        CIFAR,
        None,
        "VainF/Torch-Pruning, after group-sparse training",
    ),
    Network(
        "cifar10_resnet56b_torchpruning_groupsl_pruned_2.55x.pt",
        "resnet56b",
        CIFAR,
        93.57,
        "VainF/Torch-Pruning, the same pruned and fine-tuned",
        pruned=True,
    ),
    Network(
        "cifar10_resnet20b_distiller_dense.pt",
        "resnet20b",
        HALF,
        None,
        "IntelLabs/distiller",
    ),
    Network(
        "cifar10_resnet20b_distiller_ssl_channels.pt",
        "resnet20b",
        HALF,
        None,
        "IntelLabs/distiller, channels zeroed by group lasso",
    ),
]


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    model: str
    file: str
    source: str
    params: int
    macs: int
    images: int
    top1: float
    published: float | None


def load_test(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the test images, (N, 3, 32, 32) in [0, 1], and their labels, (N,)."""
    paths = [folder / "test_x.npy", folder / "test_y.npy"]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: not there; DATA must hold test_x.npy and test_y.npy")
    images, labels = (np.load(path, allow_pickle=False) for path in paths)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.from_numpy(labels).long()


def narrowed(model: nn.Module, path: Path) -> nn.Module:
    """Give the layers of a model the widths and weights of a pruned network's state dict."""
    state = torch.load(path, weights_only=True)
    for name, module in model.named_modules():
        if f"{name}.weight" not in state:
            continue
        for key in ("weight", "bias", "running_mean", "running_var"):
            if f"{name}.{key}" in state:
                getattr(module, key).data = state[f"{name}.{key}"]
    return model


@torch.no_grad()
def measure(
    network: Network, path: Path, images: torch.Tensor, labels: torch.Tensor, batch_size: int
) -> Row:
    if network.pruned:
        model = narrowed(create_model(network.model, num_classes=10), path).eval()
    else:
        model = create_model(network.model, num_classes=10, weights=str(path)).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in network.normalize)
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    progress = track(batches, network.file, console=Console(stderr=True), transient=True)
    right = sum(int((model((x - mean) / std).argmax(1) == y).sum()) for x, y in progress)
    counts = count(model, images[:1])
    return Row(
        model=network.model,
        file=network.file,
        source=network.source,
        params=counts.params,
        macs=counts.macs,
        images=len(labels),
        top1=round(100 * right / len(labels), 2),
        published=network.published,
    )


def table(rows: list[Row]) -> Table:
    out = Table(title=f"CIFAR-10, {rows[0].images} test images")
    for name in ("model", "params", "MACs", "top-1 %", "published", "source"):
        out.add_column(name, justify="left" if name in ("model", "source") else "right")
    for row in rows:
        published = "" if row.published is None else f"{row.published:.2f}"
        cells = [f"{row.params:,}", f"{row.macs:,}", f"{row.top1:.2f}", published]
        out.add_row(row.model, *cells, row.source)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of test_x.npy and test_y.npy")
    parser.add_argument("weights", type=Path, help="folder of the files of weights")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="these models only")
    parser.add_argument("--images", type=int, help="the first so many test images only")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        images, labels = load_test(args.data)
        images, labels = images[: args.images], labels[: args.images]
        rows = []
        for network in NETWORKS:
            path = args.weights / network.file
            if path.is_file() and (not args.only or network.model in args.only):
                rows.append(measure(network, path, images, labels, args.batch_size))
        if not rows:
            raise DataError(f"{args.weights}: holds none of the files this script knows")
    except NniGconvError as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(table(rows))
    if args.json:
        partial = args.json.with_name(args.json.name + ".partial")
        partial.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        partial.replace(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
