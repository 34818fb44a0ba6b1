"""Every pruner; what stands here passes the whole contract."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner
from nni_gconv.pruning.methods.gsparsity.pruner import GSparsityPruner
from nni_gconv.pruning.methods.nni import NNIMethodPruner
from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner
from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner

PRUNERS = {
    "fpgm": FPGMPruner,
    "gsparsity": GSparsityPruner,
    "slimming": SlimmingPruner,
    "nni-l1": partial(NNIMethodPruner, method="L1NormPruner"),
    "nni-l2": partial(NNIMethodPruner, method="L2NormPruner"),
    "nni-fpgm": partial(NNIMethodPruner, method="FPGMPruner"),
}

#: What goes is decided by their training where the config_list does not say how much.
HAVE_A_GOAL = (GSparsityPruner,)

#: Those that leave group convolutions instead of fewer channels.
GROUP_PRUNERS = {
    "gconv": GroupConvPruner,
    "gconv-shaping": partial(GroupConvPruner, shaping=1.0),
    "gconv-ramp": partial(GroupConvPruner, schedule="cubic"),
    "shuffle": ShufflePruner,
    "shuffle-ramp": partial(ShufflePruner, schedule={"name": "linear", "end": 2}),
}


def masks_of_processes(script, folder, processes):
    """Run a script of this folder in so many processes; return the masks that each wrote."""
    here = Path(__file__).parent
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    torchrun += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), str(here / script), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"masks-{rank}.json").read_text()) for rank in range(processes)]
