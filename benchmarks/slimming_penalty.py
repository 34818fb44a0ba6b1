"""Network slimming's penalty as a subgradient and as a proximal map, at equal strength.

    python benchmarks/slimming_penalty.py DATA WEIGHTS [--strengths 0.003,0.01] [--epochs 3]

DATA holds CIFAR-10 in any layout a recipe takes; WEIGHTS is resnet20_cifar10.safetensors.
The pretrained ResNet-20 is trained on with the penalty on the scales of its blocks' inner norms,
then the smallest scales of all layers are cut, down to shares of its MACs, without fine-tuning;
batch norm statistics are estimated anew from ten training batches. Prints a Markdown table:
accuracy before the cut, how many scales are exactly zero and below 1e-3, and accuracy at each share
with the statistics as they were and as estimated, on test images.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

from nni_gconv import ModelSpeedup, SlimmingPruner, recalibrate_bn
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.evaluator import make_evaluator
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.settings import TrainSettings
from nni_gconv.training.zoo import ModelSettings

INNER = [{"op_names_re": [r"layer\d\.\d\.conv1"], "global_group_id": 0}]
IMAGE = torch.zeros(1, 3, 32, 32)
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def cut(model: nn.Module, share: float) -> nn.Module:
    model = copy.deepcopy(model)
    pruner = SlimmingPruner(model, INNER, dummy_input=IMAGE, budget={"macs": share})
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return ModelSpeedup(model, IMAGE, masks, verify=False).speedup_model()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("weights")
    parser.add_argument("--strengths", default="0.003,0.01")
    parser.add_argument("--shares", default="0.9,0.8,0.7,0.6")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000, help="of the training set")
    parser.add_argument("--test-images", type=int, default=2000)
    options = parser.parse_args()
    shares = [float(share) for share in options.shares.split(",")]
    data = DataSettings(
        name="cifar10", root=options.data, batch_size=128, workers=0, normalize=NORMALIZE,
        train_size=options.images, test_size=options.test_images,
    )  # fmt: skip
    loaders = make_loaders(load_data(data, seed=0), data, seed=0, device="cpu")
    settings = TrainSettings(epochs=options.epochs, optimizer={"lr": 0.02, "weight_decay": 1e-4})
    names = " | ".join(f"{share:.0%} MACs" for share in shares)
    print(f"| penalty | strength | accuracy | zero | below 1e-3 | {names} |")
    print("|---" * (5 + len(shares)) + "|")
    for strength in [float(s) for s in options.strengths.split(",")]:
        for penalty in ("subgradient", "proximal"):
            torch.manual_seed(0)
            model = ModelSettings(name="resnet20", weights=options.weights).build(num_classes=10)
            with tempfile.TemporaryDirectory() as folder:
                evaluator = make_evaluator(
                    model, loaders, settings, directory=Path(folder), device="cpu", progress=False
                )
                pruner = SlimmingPruner(
                    model, INNER, evaluator, dummy_input=IMAGE, budget={"macs": 0.9},
                    strength=strength, penalty=penalty,
                )  # fmt: skip
                pruner.compress(max_epochs=options.epochs)
            pruner.unwrap_model()
            scales = torch.cat([m.bn1.weight.detach() for m in model.modules()
                                if hasattr(m, "conv2")]).abs()  # fmt: skip
            cells = []
            for share in shares:
                small = cut(model, share)
                before = evaluate(small, loaders.test, device="cpu").accuracy
                recalibrate_bn(small, loaders.train, max_batches=10)
                after = evaluate(small, loaders.test, device="cpu").accuracy
                cells.append(f"{before:.4f}, {after:.4f}")
            dense = evaluate(model, loaders.test, device="cpu").accuracy
            print(
                f"| {penalty} | {strength:g} | {dense:.4f} | {int((scales == 0).sum())} | "
                f"{int((scales < 1e-3).sum())} of {len(scales)} | {' | '.join(cells)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
