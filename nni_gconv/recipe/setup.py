"""What a trial needs before its first stage: a device, a model that runs, fresh weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nni_gconv.errors import ConfigError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there.

    Raises
    ------
    ConfigError
        No such device on this machine.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is not allowed (allowed: auto, cpu, cuda, cuda:N)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} GPUs"
        )
    return device


def reset_parameters(model: nn.Module) -> None:
    """Initialise every layer anew, as its class does when it is made."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def check_runs(
    model: nn.Module,
    example: torch.Tensor,
    *,
    model_name: str,
    data_name: str,
    num_classes: int,
) -> None:
    """Run the model once on an example, so that what does not fit is said before training.

    Raises
    ------
    ConfigError
        The forward fails, or its output is not one number a class.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(example)
    except (RuntimeError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model {model_name} does not run on {data_name} images "
            f"({_shown(example.shape[1:])}): {first}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or output.shape[-1] < num_classes:
        raise ConfigError(
            f"model {model_name} does not give one number for each of the {num_classes} classes "
            f"of {data_name}"
        )


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(s) for s in shape)
