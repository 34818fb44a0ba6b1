"""A training run on disk: written after every epoch, whole or not at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_gconv.errors import CheckpointError
from nni_gconv.files import atomic_path

_FORMAT = 1
_MARK = b"nni_gconv sha256"  # and 32 bytes, behind what torch wrote
_TAIL = len(_MARK) + 32


def save_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Write tensors, numbers and words to `path`; a reader sees the old file or the new one."""
    content = io.BytesIO()
    torch.save({"format": _FORMAT, **payload}, content)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.write(_MARK + hashlib.sha256(content.getbuffer()).digest())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, to the CPU.

    Raises
    ------
    CheckpointError
        The file is damaged or of another kind.
    """
    data = path.read_bytes()
    tail, content = data[-_TAIL:], data
    if tail.startswith(_MARK):  # earlier versions wrote none
        content = data[:-_TAIL]
        if hashlib.sha256(content).digest() != tail[len(_MARK) :]:
            raise CheckpointError(f"{path} is damaged; delete it to begin this stage again")
    try:
        payload = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); "
            "delete it to begin this stage again"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a training checkpoint of this version")
    return payload


def check_identity(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was made under other settings.

    Parameters
    ----------
    path : Path
        For the message.
    saved, now : mapping
        Nested settings, of the checkpoint and of this run.

    Raises
    ------
    CheckpointError
        They differ; the message lists each difference.
    """
    old, new = _flatten(saved), _flatten(now)
    keys = [
        key for key in [*old, *(k for k in new if k not in old)] if old.get(key) != new.get(key)
    ]
    if keys:
        differences = "; ".join(
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys[:5]
        )
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise CheckpointError(
            f"{path}: made under other settings: {differences}{more}; "
            "use the old settings or another directory"
        )


def load_model_state(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load `state` into `model`, or say how their shapes differ.

    A buffer that is None in the model and a tensor in `state` (a mask that was made during the
    run) is created.

    Raises
    ------
    CheckpointError
        Names or shapes differ; the message names the first.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for prefix, module in model.named_modules():
        for name, buffer in list(module._buffers.items()):
            key = f"{prefix}.{name}" if prefix else name
            if buffer is None and key in state:
                module._buffers[name] = state[key].to(device, copy=True)
    own = model.state_dict()
    problems = [
        f"{key} was {tuple(state[key].shape)}, is {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and tensor.shape != state[key].shape
    ]
    problems += [f"{key} is not in the checkpoint" for key in own if key not in state]
    problems += [f"{key} is not in the model" for key in state if key not in own]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise CheckpointError(f"{path}: made for another network: {problems[0]}{more}")
    model.load_state_dict(state)


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
