"""Train with every pruner, alone or in one of several processes, and write a digest of its masks.

usage: sparsify_process.py DIRECTORY     (or through python -m torch.distributed.run)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mask_process import digest
from pruner_cases import PRUNERS
from pruning_nets import GroupBlock, loop_evaluator
from torch import nn
from torch.nn import functional as F

from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.training.distributed import Distributed


class Disagreeing(FPGMPruner):
    """Scores by chance, in every process by another."""

    def rank(self, filters):
        number = dist.get_rank() if dist.is_initialized() else 0
        return torch.rand(len(filters[0]), generator=torch.Generator().manual_seed(number))


class SteadyNorm(nn.BatchNorm2d):
    """Batch norm by running statistics in training too: what a batch gives is a mean over it."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def net() -> nn.Module:
    made = GroupBlock(channels=1)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            setattr(made, name, SteadyNorm(module.num_features))
    return made


def main(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    found = {}
    with Distributed.from_environment("cpu") as distributed:
        for name, make in {**PRUNERS, "disagreeing": Disagreeing}.items():
            # The second process begins with other weights, and has to get those of the first.
            torch.manual_seed(distributed.rank)
            model = net()
            evaluator = loop_evaluator(
                model, directory / name, 3, batch=32 // distributed.world_size,
                distributed=distributed,
            )  # fmt: skip
            config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
            # Our loop makes masks equal after each epoch; those made at the end it does not see.
            schedule = "one-shot" if make is Disagreeing else {"name": "cubic", "end": 3}
            pruner = make(model, config, evaluator, schedule=schedule)
            found[name] = digest(pruner.compress(max_epochs=3)[1])
        (directory / f"masks-{distributed.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
