"""Knowledge distillation: a network learns what another one says, beside the labels.

Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531. With logits s of the network, t of its teacher, temperature T:

    loss = weight * T^2 * KL( softmax(t / T) || softmax(s / T) ) + (1 - weight) * cross entropy(s)

The teacher of a pruned network is the dense one. It is in evaluation mode, has no gradients, sees
the same augmented images, and costs a forward pass a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_gconv.errors import ConfigError
from nni_gconv.modes import evaluating
from nni_gconv.training.settings import DistillSettings


def distillation_loss(
    logits: Tensor,
    taught: Tensor,
    labels: Tensor,
    settings: DistillSettings,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Join what the labels and what the teacher ask for.

    Parameters
    ----------
    logits, taught : Tensor, shape (images, classes)
        Of the network and of its teacher.
    labels : Tensor of int64, shape (images,)
    settings : DistillSettings
    label_smoothing : float, default 0
        Of the cross entropy.

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> same = distillation_loss(logits, logits, labels, DistillSettings(weight=1.0))
    >>> round(float(same), 6)
    0.0
    """
    if taught.shape != logits.shape:
        raise ConfigError(
            f"distill: the teacher says {tuple(taught.shape)} where the network says "
            f"{tuple(logits.shape)}; both have to know the same classes"
        )
    hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    warm = settings.temperature
    soft = F.kl_div(
        F.log_softmax(logits / warm, 1),
        F.log_softmax(taught / warm, 1),
        reduction="batchmean",
        log_target=True,
    )
    return settings.weight * warm**2 * soft + (1 - settings.weight) * hard


@contextmanager
def teaching(
    teacher: nn.Module | None, model: nn.Module, device: torch.device, *, channels_last: bool
) -> Iterator[None]:
    """Keep a teacher in evaluation mode beside the model that it teaches.

    Raises
    ------
    ConfigError
        It is the model itself, or shares parameters with it.
    """
    if teacher is None:
        yield
        return
    trained = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) in trained for parameter in teacher.parameters()):
        raise ConfigError("teacher: shares parameters with the model: give a copy of it")
    teacher.to(device)
    if channels_last:
        teacher.to(memory_format=torch.channels_last)
    with evaluating(teacher):
        yield


def weights_digest(model: nn.Module) -> str:
    """Tell weights apart: SHA-256 of all parameters and buffers, the first 16 digits."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]
