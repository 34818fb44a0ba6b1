"""What trials lose that run at the same time and all take every core.

    python benchmarks/threads.py
    python benchmarks/threads.py --trials 4 --seconds 20

So many processes train a ResNet-20 on random images at the same time, each with torch's own number
of threads, then each with its share of the cores: steps a second of all together, in turn.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from torch import nn

from nni_gconv.compat import usable_cores
from nni_gconv.profiling.machine import processor
from nni_gconv.training.zoo import create_model


def train(threads: int, seconds: float, barrier: Any, found: Any) -> None:
    """Take steps for so many seconds and put how many a second there were."""
    torch.set_num_threads(threads)
    model = create_model("resnet20", num_classes=10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    barrier.wait()
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        steps += 1
    found.put(steps / (time.perf_counter() - begin))


def together(trials: int, threads: int, seconds: float) -> float:
    """Return the steps a second of all processes."""
    context = get_context("spawn")
    barrier, found = context.Barrier(trials), context.Queue()
    arguments = (threads, seconds, barrier, found)
    running = [context.Process(target=train, args=arguments) for _ in range(trials)]
    for process in running:
        process.start()
    rates = [found.get() for _ in running]
    for process in running:
        process.join()
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    every, share = torch.get_num_threads(), max(1, usable_cores() // options.trials)
    console = Console()
    console.print(f"{processor()}, torch {torch.__version__}, {options.trials} trials at a time")
    for _ in range(options.rounds):
        rates = [together(options.trials, n, options.seconds) for n in (every, share)]
        console.print(
            f"steps a second of all: {rates[0]:.2f} with {every} threads each, {rates[1]:.2f} with "
            f"{share}, {rates[1] / rates[0]:.1f} times as many"
        )


if __name__ == "__main__":
    main()
