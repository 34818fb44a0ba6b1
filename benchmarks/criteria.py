"""Accuracy of a pretrained network, pruned by each criterion and not trained again.

    python benchmarks/criteria.py DATA WEIGHTS [--share 0.5] [--images 1024] [--test-images 2000]

DATA holds train_x.npy, train_y.npy, test_x.npy and test_y.npy of CIFAR-10; WEIGHTS is a file of
weights of ``--model``. Prints a Markdown table: test accuracy as cut, and after the batch norms'
statistics were estimated anew on the same training images that the criterion saw.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nni_gconv import recalibrate_bn
from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.registry import CRITERIA, find_method
from nni_gconv.training.zoo import ModelSettings

RANKINGS = ("uniform", "isomorphic", "global")


def read(folder: Path, part: str, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """First images of a part, normalised, and their labels."""
    x, y = (np.load(folder / f"{part}_{what}.npy", mmap_mode="r")[:count] for what in "xy")
    images = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).float() / 255
    return (images - 0.5) / scale, torch.from_numpy(np.array(y)).long()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return 100 * right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--model", default="resnet20b")
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs that stay")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--scale", type=float, default=0.5, help="deviation of normalised pixels")
    ranked = [name for name in CRITERIA if name != "second_order"]  # which deals budgets out itself
    parser.add_argument("--methods", default=",".join(ranked))
    parser.add_argument("--rankings", default=",".join(RANKINGS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense = ModelSettings(name=options.model, weights=options.weights).build(num_classes=10)
    seen = read(options.data, "train", options.images, options.scale)
    test = read(options.data, "test", options.test_images, options.scale)
    print(f"dense {accuracy(dense, *test):.1f}\n\n| method | ranking | as cut | norms anew | s |")
    print("|---|---|---|---|---|")
    for method in options.methods.split(","):
        for ranking in options.rankings.split(","):
            model = copy.deepcopy(dense)
            given: dict[str, Any] = {"budget": {"macs": options.share}, "ranking": ranking}
            pruner = find_method(method).make(
                model, [{"op_types": ["Conv2d"]}], None, dummy_input=seen[0][:1],
                calibration=Calibration([seen]), **given,
            )  # fmt: skip
            begun = time.process_time()
            pruner.compress()
            spent = time.process_time() - begun
            cut = accuracy(model, *test)
            recalibrate_bn(model, zip(seen[0].split(256), seen[1].split(256), strict=True))
            anew = accuracy(model, *test)
            print(f"| {method} | {ranking} | {cut:.1f} | {anew:.1f} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
