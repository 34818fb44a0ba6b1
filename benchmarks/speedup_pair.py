"""Seconds of ModelSpeedup with this code and with another commit's, in turn.

    git worktree add /tmp/before 99b17d6
    python benchmarks/speedup_pair.py /tmp/before --rounds 9

Each tree has a process of its own, which keeps a network and half of its channels masked, chosen by
that tree's benchmarks/speedup_models.py; the two are asked in turn for one cut of a fresh copy.
Seconds are the processor's, of one thread, so that what else runs on the machine hardly counts;
ratios are of neighbouring rounds, this tree over the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ["resnet18", "mobilenet_v2", "resnet50", "googlenet", "densenet121", "efficientnet_b0",
          "vgg16_bn"]  # fmt: skip
CHILD = """
import copy, sys, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import torch
torch.set_num_threads(1)
import nni_gconv
assert nni_gconv.__file__.startswith(sys.argv[1]), nni_gconv.__file__
from speedup_models import build, enliven, half_masks
for line in sys.stdin:
    kind, name = line.split()
    if kind == "network":
        model, x = build(name)
        masks = half_masks(model, x)
        enliven(model, x, masks)
        print("there", flush=True)
        continue
    small = copy.deepcopy(model)
    speedup = nni_gconv.ModelSpeedup(small, x, masks, verify=kind == "verified")
    begun = time.process_time()
    speedup.speedup_model()
    print(time.process_time() - begun, flush=True)
"""


class Tree:
    """A process that cuts networks with the code of a working tree."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(self.root)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, *words: str) -> str:
        """Send a line and return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"the process of {self.root} ended")
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="another working tree")
    parser.add_argument("--models", nargs="+", default=MODELS, help="of torchvision")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    trees = Tree(args.before), Tree(ROOT)
    medians: dict[str, list[float]] = {"cut": [], "verified": []}
    for name in args.models:
        for tree in trees:
            tree.ask("network", f"torchvision:{name}")
        for kind, found in medians.items():
            rounds = [[float(t.ask(kind, name)) for t in trees] for _ in range(args.rounds + 1)]
            ratios = sorted(now / before for before, now in rounds[1:])
            least = " and ".join(f"{min(of):.3f}" for of in zip(*rounds, strict=True))
            found.append(statistics.median(ratios))
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{name}, {kind}: {found[-1]:.2f} ({spread}); least {least} s", flush=True)
    for kind, found in medians.items():
        print(f"{kind}: median of {len(found)} networks {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
