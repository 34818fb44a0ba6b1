"""Loss and accuracy of a network on a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_gconv.errors import ConfigError, DataError
from nni_gconv.modes import evaluating
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.settings import Amp

_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Metrics:
    """Means over `count` images; `accuracy` and `top5` are fractions of 1."""

    loss: float
    accuracy: float
    top5: float
    count: int


def check_amp(amp: Amp, device: torch.device) -> None:
    """Raise :class:`ConfigError` where `amp` does not work on `device`."""
    if amp == "fp16" and device.type != "cuda":
        raise ConfigError(f"amp: fp16 needs a GPU, the device is {device.type}; use bf16 or none")


def autocast(amp: Amp, device: torch.device) -> torch.autocast:
    """Return the context in which `amp` is done on `device`."""
    enabled = amp != "none"
    return torch.autocast(device.type, _DTYPES[amp] if enabled else None, enabled=enabled)


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str,
    amp: Amp = "none",
    label_smoothing: float = 0.0,
    channels_last: bool = False,
    distributed: Distributed | None = None,
) -> Metrics:
    """Measure `model` on every image of `loader`.

    Parameters
    ----------
    model : nn.Module
        Maps (B, C, H, W) to logits (B, classes); its modules' train/eval modes are left as found.
    loader : Loader or iterable of (images, labels)
        A ``val`` or ``test`` loader of :func:`~nni_gconv.training.data.make_loaders`, or other
        batches that are on `device`.
    device : torch.device or str
        Where the model is.
    amp : {"none", "bf16", "fp16"}
        Mixed precision of the forward pass.
    label_smoothing : float, default 0
        Of the loss that is reported.
    channels_last : bool, default False
        Memory format of the images.
    distributed : Distributed, optional
        With several processes each measures its share, and all get the sums: counts are exact.

    Raises
    ------
    DataError
        The loader has no image.

    Examples
    --------
    >>> from nni_gconv.training.data import DataSettings, load_data, make_loaders
    >>> settings = DataSettings(name="digits")
    >>> loaders = make_loaders(load_data(settings), settings, seed=0, device="cpu")
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> evaluate(net, loaders.test, device="cpu").count
    360
    """
    device = torch.device(device)
    check_amp(amp, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, right, right in 5, images
    # Not inference_mode: NNI's wrappers keep tensors of this forward as buffers of the model.
    with evaluating(model), torch.no_grad(), autocast(amp, device):
        for images, labels in loader:
            logits = model(images.to(memory_format=layout)).float()
            loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
            right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            sums[0] += loss
            sums[1] += right[:, 0].sum()
            sums[2] += right.sum()
            sums[3] += len(labels)
    loss_sum, first, top5, count = (distributed or Distributed()).sum(sums).tolist()
    if not count:
        raise DataError("there are no images to evaluate on")
    return Metrics(loss_sum / count, first / count, top5 / count, int(count))


def no_better_than_chance(accuracy: float, count: int, classes: int) -> bool:
    """Tell whether an accuracy on `count` images is that of guessing one of `classes`.

    That is where it lies within three standard errors of it, or below.

    Examples
    --------
    >>> no_better_than_chance(0.12, 500, 10), no_better_than_chance(0.20, 500, 10)
    (True, False)
    """
    chance = 1 / classes
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / count)
