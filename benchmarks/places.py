"""How many places of a layer a second-order choice needs, and how many a refit.

    python benchmarks/places.py DATA WEIGHTS

The pretrained ResNet-20 with 1x1 shortcuts at half its MACs, first convolutions of the blocks
alone, by 1,024 training images; test accuracy with nothing trained, of all 10,000 images. Places
are so many for each column of a layer, 65,536 at most, or as many as the package takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from oneshot import Bench
from pretrained import NETWORKS

from nni_gconv.pruning.calibration import moments
from nni_gconv.pruning.reconstruction import layer_sums

#: Places a column, for the choice and for the refit.
ASKED = ((0, 0), (12, 0), (6, 0), (4, 0), (3, 0), (0, 30), (0, 12))


def few(each: int) -> Callable[..., int]:
    """Return a rule of so many places a column, whatever the package asks for at least."""
    return lambda columns, _least=0: min(65_536, each * columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = next(n for n in NETWORKS if n.model == "resnet20b")
    bench = Bench(network, args.data, args.weights, 1024)
    rules = moments.places_seen, layer_sums.places_for
    print("| places a column, choice | refit | + BN anew | reconstructed |\n|---|---|---|---|")
    for choice, refit in ASKED:
        vars(moments)["places_seen"] = few(choice) if choice else rules[0]
        vars(layer_sums)["places_for"] = few(refit) if refit else rules[1]
        row = bench.prune("second_order", bench.inner(), budget={"macs": 0.5})
        shown = [str(n or "own") for n in (choice, refit)]
        print(f"| {' | '.join(shown)} | {row['bn']} | {row['reconstructed']} |", flush=True)


if __name__ == "__main__":
    main()
