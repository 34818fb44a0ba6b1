"""What the histograms of an epoch cost: time and bytes, beside an epoch of training.

    python benchmarks/log_overhead.py

Random CIFAR images in batches of 128 on one CPU thread; an epoch is 391 steps, of which a few are
timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from nni_gconv.training.logs.distributions import log_distributions
from nni_gconv.training.logs.metric_log import MetricLog
from nni_gconv.training.zoo import create_model

STEPS = 391


def step_seconds(model: nn.Module, steps: int) -> float:
    """Median time of a step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    times = []
    for _ in range(steps):
        begun = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def log_seconds(model: nn.Module, epochs: int) -> tuple[float, float]:
    """Median processor time of writing an epoch's histograms, and bytes an epoch."""
    with tempfile.TemporaryDirectory() as folder, MetricLog(Path(folder), nni=False) as log:
        times = []
        for epoch in range(1, epochs + 1):
            begun = time.process_time()  # of all threads: that of the writer too
            log_distributions(log, model, "train", epoch, epochs)
            log.write("train", epoch, {"loss": 1.0})
            times.append(time.process_time() - begun)
        log.close()
        size = sum(file.stat().st_size for file in Path(folder, "tensorboard").iterdir())
    return statistics.median(times), size / epochs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | ms an epoch | KB an epoch | of an epoch's training |\n|---|---|---|---|")
    for name in args.models:
        model = create_model(name, num_classes=10)
        seconds, size = log_seconds(model, 20)
        epoch = STEPS * step_seconds(model, args.steps)
        share = f"{100 * seconds / epoch:.3f} %"
        print(f"| {name} | {1000 * seconds:.0f} | {size / 1000:.0f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
