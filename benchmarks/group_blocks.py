"""Kernel norms before and after the permutation into groups, as a picture.

    python benchmarks/group_blocks.py WEIGHTS docs/images/group_blocks.png

WEIGHTS holds resnet56_cifar10.safetensors, an ordinary network, and
cifar10_resnet56b_torchpruning_groupsl_dense.pt, one that was trained to have weak channels. Beside
them a matrix with blocks hidden in it, which every partition should find.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from partition import PRETRAINED, planted

from nni_gconv.groupconv.partition import l2, partition
from nni_gconv.report import plot_blocks
from nni_gconv.training.zoo import create_model

LAYER, GROUPS = "layer3.4.conv1", 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--layer", default=LAYER)
    args = parser.parse_args()
    layers = {}
    for name, (model, file) in PRETRAINED.items():
        network = create_model(model, num_classes=10, weights=str(args.weights / file))
        layers[name] = l2(network.get_submodule(args.layer).weight)
    layers["hidden blocks"] = planted(0, 64, GROUPS)
    print(plot_blocks({n: (s, partition(s, GROUPS)) for n, s in layers.items()}, args.picture))


if __name__ == "__main__":
    main()
