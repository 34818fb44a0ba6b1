"""Files of a trial between its stages: weights, and NNI's masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nni_gconv.errors import CheckpointError
from nni_gconv.files import atomic_path
from nni_gconv.training import Distributed


def save_state(model: nn.Module, path: Path, distributed: Distributed) -> None:
    """Write the weights of a model; the main process does, the others wait."""
    if distributed.is_main:
        state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        with atomic_path(path) as temporary:
            save_file(state, temporary)
    distributed.barrier()


def load_state(model: nn.Module, path: Path, device: torch.device) -> None:
    """Read weights that a finished stage left.

    Raises
    ------
    CheckpointError
        The file is missing or damaged.
    """
    try:
        state = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged although its stage is finished: begin anew in "
            "another --output"
        ) from error
    model.load_state_dict(state)


def save_masks(
    masks: Mapping[str, Mapping[str, Tensor | None]], path: Path, distributed: Distributed
) -> float:
    """Write NNI's masks; return the share of their numbers that is 1."""
    flat = {
        f"{module}.{target}": mask.to("cpu", torch.uint8)
        for module, targets in masks.items()
        for target, mask in targets.items()
        if mask is not None
    }
    if distributed.is_main:
        with atomic_path(path) as temporary:
            save_file(flat, temporary)
    kept, every = (sum(int(f(m)) for m in flat.values()) for f in (torch.sum, torch.numel))
    return kept / max(1, every)
