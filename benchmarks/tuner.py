"""How much of the best front does the tuner fill? Its search on networks whose truth is known.

    python benchmarks/tuner.py --trials 50 --networks 6

A ResNet-20 by its costs; a layer's weight is drawn (log-normal, spread 1.2), accuracy falls a bit
faster than linearly and has noise of 0.4 points. The area under the front of accuracy and MACs,
without the noise, over that of a search that knows the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from tuning_cases import WORST, Truth, best, run, space

from nni_gconv.tuning.front import hypervolume
from nni_gconv.tuning.options import Options


def at_random(seed: int, trials: int) -> float:
    options = Options.from_space(space())
    truth, rng = Truth(options, seed), np.random.default_rng(seed)
    choices = [tuple(rng.integers(4, size=len(options))) for _ in range(trials)]
    return hypervolume([(options.cost(c), truth.exact(c)) for c in choices], WORST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--networks", type=int, default=6)
    args = parser.parse_args()
    rows = []
    print("| network | learning | not learning | random |\n|---|---|---|---|")
    for seed in range(args.networks):
        whole = best(seed)
        row = [
            run(seed, args.trials)[0] / whole,
            run(seed, args.trials, learn=False)[0] / whole,
            at_random(seed, args.trials) / whole,
        ]
        rows.append(row)
        print(f"| {seed} | " + " | ".join(f"{share:.1%}" for share in row) + " |", flush=True)
    print("| mean | " + " | ".join(f"{share:.1%}" for share in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
