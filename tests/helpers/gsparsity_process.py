"""Steer towards a budget, alone or in one of several processes; write what came of it.

usage: gsparsity_process.py DIRECTORY     (or through python -m torch.distributed.run)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mask_process import digest
from pruning_nets import loop_evaluator
from sparsify_process import net

from nni_gconv import GSparsityPruner
from nni_gconv.training.distributed import Distributed


def main(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    with Distributed.from_environment("cpu") as distributed:
        torch.manual_seed(distributed.rank)
        model = net()
        evaluator = loop_evaluator(
            model, directory, 4, batch=32 // distributed.world_size, distributed=distributed,
            name="ProxSGD", lr=0.05, exact_zeros=True,
        )  # fmt: skip
        pruner = GSparsityPruner(
            model, [{"op_types": ["Conv2d"]}], evaluator, budget={"macs": 0.5}, ramp=0.9
        )
        gains = []
        multiply = pruner._multiply_gains
        pruner._multiply_gains = lambda factor: (gains.append(factor), multiply(factor))
        masks = pruner.compress(max_epochs=4)[1]
        said = {"masks": digest(masks), "settled": pruner.settled, "gains": gains}
        (directory / f"said-{distributed.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
