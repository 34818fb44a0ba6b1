"""A training run in a process of its own, for the tests that kill it or start several.

usage: fit_process.py DIRECTORY [key=value ...]     (or through python -m torch.distributed.run)
"""

from __future__ import annotations

import copy
import os
import signal
import sys
from pathlib import Path

import torch
from training_nets import conv_net, plain_net, synthetic

from nni_gconv.training import FeatureTeacher, common_maps
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.logs.metric_log import MetricLog
from nni_gconv.training.loop import fit
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.settings import TrainSettings


def main(directory: Path, options: dict[str, str]) -> None:
    net = {"conv": conv_net(dropout=0.3), "plain": plain_net()}[options.get("net", "conv")]
    ways = {"no": None, "yes": {"weight": 0.6}, "maps": {"features": 5}}
    distill, teacher = ways[options.get("distill", "no")], conv_net(seed=9, dropout=0.3)
    if distill and "features" in distill:
        common = common_maps(net, copy.deepcopy(net), torch.randn(2, *synthetic().input_shape))
        teacher = FeatureTeacher(teacher, common)
    left = [int(options.get("kill_at", -1))]

    def maybe_die() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with Distributed.from_environment("cpu") as distributed:
        if distributed.rank == 1:  # must be overwritten by the main process's weights
            torch.nn.init.zeros_(net[0].weight)
        loaders = synthetic(int(options.get("batch", 16)), distributed.rank, distributed.world_size)
        log = MetricLog(directory, tensorboard=False) if distributed.is_main else None
        result = fit(
            net,
            loaders,
            TrainSettings(
                epochs=int(options.get("epochs", 4)),
                optimizer={"lr": 0.05, "nesterov": True},
                schedule={"warmup": 1.5},
                distill=distill,
                keep=options.get("keep", "best"),
            ),
            directory=directory,
            device="cpu",
            seed=7,
            log=log,
            progress=False,
            resume=options.get("resume") == "yes",
            teacher=teacher if distill else None,
            after_step=maybe_die,
            distributed=distributed,
        )
        test = evaluate(net, loaders.test, device="cpu", distributed=distributed)
        torch.save(
            {"weights": net.state_dict(), "history": result.history, "test": vars(test)},
            directory / f"final-{distributed.rank}.pt",
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:]))
