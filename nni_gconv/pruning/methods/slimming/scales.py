"""Network slimming on plain tensors: the L1 penalty on channel scales, and its thresholds.

Paper: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519. A *scale* is a batch norm's ``weight``
(gamma), one number a channel. No model, no NNI.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def percentile_threshold(scales: Sequence[Tensor], ratio: float) -> float:
    """Threshold that the share `ratio` of all scales together lies below.

    With the ``N`` absolute values sorted it is the one at index ``int(N * ratio)``, so that
    ``int(N * ratio)`` channels go when no two are equal. For a ratio of 1 it is infinite.

    Parameters
    ----------
    scales : sequence of Tensor
        One a layer, ranked together.
    ratio : float
        Share of the channels to remove, from 0 to 1.

    Examples
    --------
    >>> percentile_threshold([torch.tensor([0.5, -0.25]), torch.tensor([2.0, 1.0])], 0.5)
    1.0
    """
    ordered = torch.cat([scale.reshape(-1) for scale in scales]).abs().sort().values
    # 0.29 * 100 is a little less than 29 in binary.
    index = int(round(len(ordered) * ratio, 9))
    return float(ordered[index]) if index < len(ordered) else math.inf


def clamped_threshold(scales: Sequence[Tensor], threshold: float) -> float:
    """Lower a threshold until every layer keeps its largest scale.

    One layer of small scales thus undoes the pruning of all; a floor of channels for each layer
    (`min_channels`) does not.

    Examples
    --------
    >>> clamped_threshold([torch.tensor([0.5, -1.0]), torch.tensor([0.25, 0.125])], 0.5)
    0.25
    """
    return min([threshold, *(float(scale.abs().max()) for scale in scales)])


def kept(scales: Sequence[Tensor], threshold: float, min_channels: int = 1) -> Tensor:
    """Tell which channels stay: those that reach the threshold in any layer, or the largest.

    Parameters
    ----------
    scales : sequence of Tensor, each of shape (n,)
        The scales that coupled layers give to the same channels, or those of one layer. Their
        signs do not matter.
    threshold : float
        A channel whose ``|scale|`` equals it stays.
    min_channels : int, default 1
        If fewer reach the threshold, so many of the largest ``|scale|`` stay.

    Returns
    -------
    bool Tensor, shape (n,)

    Examples
    --------
    >>> kept([torch.tensor([0.9, 0.01]), torch.tensor([0.02, 0.03])], 0.1)
    tensor([ True, False])
    >>> kept([torch.tensor([-0.9, 0.1, 0.05])], 1.0)
    tensor([ True, False, False])
    """
    size = torch.stack([scale.abs() for scale in scales]).amax(0)
    stays = size >= threshold
    if int(stays.sum()) < min_channels:
        stays[size.argsort(descending=True, stable=True)[:min_channels]] = True
    return stays
