"""What a method costs in each training step, against plain SGD in the same run.

    python benchmarks/step_overhead.py [--nets resnet20,resnet56] [--rounds 40] [--device cpu]

A step is: clear gradients, forward, loss, backward, optimizer, and whatever the method does around
it, on one batch of 128 random CIFAR images. All methods take turns, in a new order each round, and
each is compared with plain SGD of the same round, so that what else the machine does hits all
alike; on one CPU thread it is the processor's time that counts. What a method does at the end of an
epoch is timed by itself and spread over the 391 steps of a CIFAR epoch. Prints Markdown tables:
median over rounds, quartiles in brackets.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import nni
import torch
from nni.compression import TorchEvaluator
from torch import nn
from torch.nn import functional as F

from nni_gconv import FPGMPruner, GSparsityPruner, ProxSGD, ShufflePruner, SlimmingPruner
from nni_gconv.pruning.pruner import TrainedPruner
from nni_gconv.training.engine import default_training_step
from nni_gconv.training.features import FeatureTeacher, common_maps
from nni_gconv.training.settings import DistillSettings, TrainSettings
from nni_gconv.training.zoo import create_model

BATCH, STEPS_PER_EPOCH = 128, 391
BUDGET = {"config_list": [{"op_types": ["Conv2d"]}], "budget": {"macs": 0.5}}
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Method:
    """A row of the table: which optimizer, and which pruner with which options (None: plain)."""

    pruner: type[TrainedPruner] | None = None
    options: Any = None
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    settings: Any = None
    distill: DistillSettings | None = None


METHODS: dict[str, Method] = {
    "plain SGD": Method(),
    "distillation": Method(distill=DistillSettings()),
    "feature maps": Method(distill=DistillSettings(features=100)),
    "slimming (proximal)": Method(SlimmingPruner, BUDGET),
    "slimming (subgradient)": Method(SlimmingPruner, {**BUDGET, "penalty": "subgradient"}),
    "FPGM (soft)": Method(FPGMPruner, BUDGET),
    "FPGM (locked)": Method(FPGMPruner, {**BUDGET, "selection": "locked"}),
    "GSparsity (ProxSGD)": Method(
        GSparsityPruner, BUDGET, ProxSGD, {"lr": 1e-3, "exact_zeros": True}
    ),
    "GSparsity (SGD and prox)": Method(GSparsityPruner, BUDGET),
    "shuffle (proximal)": Method(ShufflePruner, BUDGET),
    "shuffle (subgradient)": Method(ShufflePruner, {**BUDGET, "penalty": "subgradient"}),
}


class Timed:
    """A network, a method, and one step of its training at a time."""

    def __init__(self, net: str, method: Method, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        torch.manual_seed(0)
        images, self.labels = batch
        self.batch = batch
        self.model = create_model(net).to(images.device)
        settings = SGD if method.settings is None else method.settings
        optimizer = nni.trace(method.optimizer)(self.model.parameters(), **settings)
        self.pruner, self.finish_epoch = None, 0.0
        self.optimizer, self.training_step = optimizer, self.loss
        if method.distill is not None:
            # What fit(teacher=) does in each step: the teacher of a pruned network is a dense one.
            teacher = create_model(net).to(images.device).eval()
            if method.distill.features:
                common = common_maps(self.model, copy.deepcopy(self.model), images[:8])
                teacher = FeatureTeacher(teacher, common)
            self.training_step = default_training_step(
                TrainSettings(distill=method.distill), teacher
            )
        if method.pruner is not None:
            evaluator = TorchEvaluator(
                lambda *_: None, optimizer, self.loss, dummy_input=images[:1]
            )
            evaluator.steps_per_epoch = STEPS_PER_EPOCH
            pruner = method.pruner(
                self.model, evaluator=evaluator, dummy_input=images[:1], **method.options
            )
            # What compress() does before it trains.
            evaluator.bind_model(self.model, pruner._get_param_names_map())
            pruner._max_epochs = 10
            pruner._fuse_preprocess(evaluator)
            self.pruner, self.optimizer = pruner, evaluator._optimizers[0]
            self.training_step = evaluator._training_step
        self.model.train()

    @staticmethod
    def loss(batch: tuple[torch.Tensor, torch.Tensor], model: nn.Module) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(model(batch[0]), batch[1])

    def step(self) -> None:
        """Train on the batch once."""
        self.optimizer.zero_grad(set_to_none=True)
        self.training_step(self.batch, self.model).backward()
        self.optimizer.step()

    def end_epoch(self) -> None:
        """Do what the method does after the last step of an epoch."""
        if self.pruner is not None:
            self.pruner.after_epoch(0)


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Time of the processor where that is one thread, so that other processes do not count."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        begun = time.process_time()
        work()
        return time.process_time() - begun
    torch.cuda.synchronize(device) if device.type == "cuda" else None
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize(device) if device.type == "cuda" else None
    return time.perf_counter() - begun


def measure(net: str, names: list[str], rounds: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (BATCH,), generator=generator).to(device)
    timed = {name: Timed(net, METHODS[name], (images, labels)) for name in names}
    for one in timed.values():
        for _ in range(3):
            one.step()
    taken: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            taken[name].append(seconds(timed[name].step, device))
    print(f"\n{net}\n\n| method | ms a step | of plain SGD | ms at the end of an epoch | with it |")
    print("|---|---|---|---|---|")
    plain = taken[names[0]]
    for name, mine in taken.items():
        ends = [seconds(timed[name].end_epoch, device) for _ in range(3)]
        end = median(ends)
        ratios = [a / b for a, b in zip(mine, plain, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        spread = end / STEPS_PER_EPOCH / median(plain)
        print(
            f"| {name} | {1e3 * median(mine):.1f} | {median(ratios):.3f} ({low:.3f}..{high:.3f}) | "
            f"{1e3 * end:.1f} | {median(ratios) + spread:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="resnet20,resnet56")
    parser.add_argument("--methods", default=",".join(METHODS), help="the first is the reference")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(
        f"{name or platform.machine()}, {options.threads} threads, torch {torch.__version__}, "
        f"batch {BATCH}, {options.rounds} rounds"
    )
    for net in options.nets.split(","):
        measure(net, options.methods.split(","), options.rounds, device)


if __name__ == "__main__":
    main()
