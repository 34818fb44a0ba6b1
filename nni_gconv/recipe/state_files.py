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
from nni_gconv.training import CommonMaps, Distributed


def save_state(model: nn.Module, path: Path, distributed: Distributed) -> None:
    """Write the weights of a model; the main process does, the others wait."""
    if distributed.is_main:
        state = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
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
    model.load_state_dict(_read(path, str(device)))


def save_masks(
    masks: Mapping[str, Mapping[str, Tensor | None]], path: Path, distributed: Distributed
) -> float:
    """Write NNI's masks; return the share of their numbers that is 1."""
    flat = {
        f"{module}.{target}": mask.to("cpu", torch.uint8).contiguous()
        for module, targets in masks.items()
        for target, mask in targets.items()
        if mask is not None
    }
    if distributed.is_main:
        with atomic_path(path) as temporary:
            save_file(flat, temporary)
    kept, every = (sum(int(f(m)) for m in flat.values()) for f in (torch.sum, torch.numel))
    return kept / max(1, every)


def save_maps(common: CommonMaps, path: Path, distributed: Distributed) -> None:
    """Write which channels of a small network are which of the dense one."""
    flat = {f"{name}.{part}": t for name, two in common.items() for part, t in enumerate(two)}
    if distributed.is_main:
        with atomic_path(path) as temporary:
            save_file(flat, temporary)
    distributed.barrier()


def load_maps(path: Path) -> CommonMaps:
    """Read what :func:`save_maps` wrote.

    Raises
    ------
    CheckpointError
        The file is missing or damaged.
    """
    flat = _read(path, "cpu")
    return {name[:-2]: (flat[name], flat[f"{name[:-2]}.1"]) for name in flat if name.endswith(".0")}


def _read(path: Path, device: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path, device=device)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged although its stage is finished: begin anew in "
            "another --output"
        ) from error
    return state
