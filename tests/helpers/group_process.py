"""Train with the group pruners, alone or in one of several processes, and write what they found.

usage: group_process.py DIRECTORY     (or through python -m torch.distributed.run)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mask_process import digest
from pruner_cases import GROUP_PRUNERS
from pruning_nets import loop_evaluator
from sparsify_process import net

from nni_gconv.training.distributed import Distributed


def main(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    found = {}
    with Distributed.from_environment("cpu") as distributed:
        for name, make in GROUP_PRUNERS.items():
            # The second process begins with other weights, and has to get those of the first.
            torch.manual_seed(distributed.rank)
            model = net()
            evaluator = loop_evaluator(
                model, directory / name, 3, batch=32 // distributed.world_size,
                distributed=distributed,
            )  # fmt: skip
            pruner = make(model, [{"op_types": ["Conv2d"]}], evaluator, budget={"macs": 0.8})
            _, masks = pruner.compress(max_epochs=3)
            found[name] = {"masks": digest(masks), "groups": pruner.groups}
        (directory / f"masks-{distributed.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
