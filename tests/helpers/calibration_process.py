"""Prune and reconstruct by calibration images, alone or as one of the ranks of torchrun.

usage: calibration_process.py FILE     (writes FILE-RANK.pt)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from pruning_nets import GroupBlock, randomised

from nni_gconv import SecondOrderPruner
from nni_gconv.graph import Replay
from nni_gconv.pruning.calibration import Calibration, read_moments
from nni_gconv.training.distributed import Distributed


def main(file: Path) -> None:
    with Distributed.from_environment("cpu") as distributed:
        torch.manual_seed(0)
        net = randomised(GroupBlock()).eval()
        x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        calibration = Calibration(x, batch_size=8, keep_in=file.parent / f"kept-{file.name}")
        seen, whole = [], Replay.run

        def run(*args, **kwargs):
            seen.append(1)
            return whole(*args, **kwargs)

        Replay.run = run
        moments = read_moments(net, calibration)
        Replay.run = whole
        pruner = SecondOrderPruner(
            net, [{"op_types": ["Conv2d"]}], dummy_input=x[:1], budget={"macs": 0.5},
            calibration=calibration, reconstruct=True,
        )  # fmt: skip
        _, masks = pruner.compress()
        pruner.unwrap_model()
        found = {
            f"{m}.{t}": mask
            for m, targets in masks.items()
            for t, mask in targets.items()
            if mask is not None
        }
        torch.save(
            {"seen": len(seen), "moments": moments, "masks": found, "weights": net.state_dict()},
            file.parent / f"{file.name}-{distributed.rank}.pt",
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
