"""Time and memory of ModelSpeedup against depth: CIFAR ResNets from 20 to 1202 layers.

    python benchmarks/speedup_depth.py

Half of the channels of every set are masked at random; the small network is not verified, so that
the time is that of tracing, deciding and cutting. Prints a Markdown table; memory is the peak of
the process so far.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time

import numpy as np
import torch

from nni_gconv import ModelSpeedup
from nni_gconv.speedup.coupling import Coupling
from nni_gconv.training.zoo import create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default="20,56,110,302,602,1202")
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread\n")
    print("| layers | s | s per 100 layers | peak MiB |\n|---|---|---|---|")
    for depth in map(int, parser.parse_args().depths.split(",")):
        model, dummy = create_model("resnet", depth=depth).eval(), torch.randn(1, 3, 32, 32)
        coupling = Coupling.trace(model, dummy)
        removed = coupling.empty()
        generator = np.random.default_rng(0)
        for coupled in coupling.sets:
            if coupled.reason is None:
                drawn = generator.permutation(coupled.size)[: coupled.size // 2]
                removed[coupled.classes[drawn]] = True
        masks = coupling.masks(removed)
        begun = time.perf_counter()
        ModelSpeedup(model, dummy, masks, verify=False).speedup_model()
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"| {depth} | {seconds:.2f} | {seconds / depth * 100:.2f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
