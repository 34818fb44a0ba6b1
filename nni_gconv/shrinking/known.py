"""What a network knows of the calibration images: whether they look as in its training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.profiling import device_of
from nni_gconv.pruning import Calibration
from nni_gconv.training import no_better_than_chance

#: Images that are looked at, and those of one forward.
_ENOUGH, _TOGETHER = 256, 32


@torch.no_grad()
def images_known(model: nn.Module, images: Calibration) -> tuple[str, str]:
    """Say on how many images a network is right, where their labels are its classes.

    Parameters
    ----------
    model : nn.Module
        Dense, in evaluation mode.
    images : Calibration

    Returns
    -------
    known : str
        ``", the network is right on 93 %"``, or nothing where labels do not tell.
    odd : str
        A note where that is no better than chance, else nothing.

    Examples
    --------
    >>> net = nn.Flatten().eval()
    >>> images_known(net, Calibration([(torch.eye(40)[:, :, None, None], torch.arange(40))]))
    (', the network is right on 100 % of 40', '')
    """
    labels = images.labels
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        return "", ""
    labels = labels[:_ENOUGH]
    inputs = images.typed_for(model).inputs[:_ENOUGH].to(device_of(model))
    try:
        said = torch.cat([_logits(model(part)) for part in inputs.split(_TOGETHER)]).cpu()
    except (RuntimeError, TypeError, ValueError, IndexError):
        return "", ""  # no classes; or images that do not fit, which the choice says in a line
    if int(labels.min()) < 0 or int(labels.max()) >= said.shape[1]:
        return "", ""
    right = int((said.argmax(1) == labels).sum())
    share, classes = right / len(labels), int(labels.unique().numel())
    known = f", the network is right on {share:.0%} of {len(labels)}".replace("%", " %")
    if classes < 2 or not no_better_than_chance(share, len(labels), classes):
        return known, ""
    return known, (
        f"calibration: the network is right on {right} of {len(labels)} images, no better than "
        "chance: are their pixels scaled, and their classes ordered, as in its training?"
    )


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise TypeError("not one number for each class")
    return output
