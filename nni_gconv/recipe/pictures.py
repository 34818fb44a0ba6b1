"""Pictures of what a pruner chose, for TensorBoard."""

from __future__ import annotations

from typing import Any

import torch

from nni_gconv.groupconv.partition import block_pixels
from nni_gconv.pruning import GroupPruner
from nni_gconv.training import MetricLog


def log_blocks(log: MetricLog | None, pruner: Any) -> None:
    """Write the kernel norms of each layer a pruner split: as stored, and groups side by side.

    Parameters
    ----------
    log : MetricLog or None
        None: not the main process.
    pruner : Pruner
        Its masks are made; one that makes no groups is passed over.
    """
    if log is None or not isinstance(pruner, GroupPruner):
        return
    for name, (norms, part) in pruner.kernel_norms().items():
        log.image(f"prune/kernel_norms/{name}", torch.from_numpy(block_pixels(norms, part)), 0)
