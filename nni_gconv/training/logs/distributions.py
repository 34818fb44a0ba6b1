"""What the weights of each layer look like while a network trains, for TensorBoard."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.groupconv import gathers_of
from nni_gconv.training.logs.metric_log import MetricLog

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Histograms of a layer that one stage leaves at most: a longer one skips epochs.
_MOST = 25


def distributions(model: nn.Module) -> dict[str, Tensor]:
    """Return the scales of norms and the norms of filters, layer by layer.

    Parameters
    ----------
    model : nn.Module
        Wrapped by NNI or not; of wrapped layers the weights that are trained, masked or not.

    Returns
    -------
    dict of str to Tensor
        ``gamma/LAYER``: magnitudes of a batch or group norm's scales, shape (C,);
        ``filters/LAYER``: L2 norms of a convolution's filters, shape (F,). On the CPU.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    >>> list(distributions(net)), distributions(net)["gamma/1"]
    (['filters/0', 'gamma/1'], tensor([1., 1., 1.]))
    """
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    # A layer between gathers has the name it has without them, in every trial alike.
    wrapped = {f"{name}.conv": name for name, module in modules.items() if gathers_of(module)}
    with torch.no_grad():
        for full, module in modules.items():
            name = wrapped.get(full, full)
            if not isinstance(module, _NORMS + _CONVOLUTIONS):
                continue
            weight = compat.trained_weight(module)
            if weight is None:
                continue
            norm = isinstance(module, _NORMS)
            values = weight.float().abs() if norm else weight.float().flatten(1).norm(dim=1)
            found[f"{'gamma' if norm else 'filters'}/{name}"] = values
        if not found:
            return found
        # One copy for all of them: each one makes a GPU wait.
        sizes = [values.numel() for values in found.values()]
        together = torch.cat(list(found.values())).cpu()
    return dict(zip(found, together.split(sizes), strict=True))


def log_distributions(
    log: MetricLog, model: nn.Module, stage: str, epoch: int, epochs: int
) -> None:
    """Write the distributions of an epoch (from 1) of so many; at most 25 times a stage."""
    every = math.ceil(epochs / _MOST)
    if epoch % every and epoch not in (1, epochs):
        return
    for name, values in distributions(model).items():
        log.histogram(f"{stage}/{name}", values, epoch)
