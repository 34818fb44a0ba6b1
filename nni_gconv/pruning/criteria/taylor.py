"""Taylor: how much the loss moves, to first order, when weights become zero.

Paper: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning",
CVPR 2019, https://arxiv.org/abs/1906.10771.

    score of filter i = sum over its weights of | w * g |,    g = dL/dw, mean over the images

or ``| sum of w * g |`` with ``joint``: what the loss does to first order when the filter goes as a
whole, where single terms may cancel. One pass with gradients; scores of all layers are changes of
one loss, so they add up and compare as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from nni_gconv.pruning.criteria.base import DataCriterion, GradientOptions, Layer, trained_weight
from nni_gconv.pruning.criteria.evidence import Passes


class TaylorPruner(DataCriterion):
    """Prune the channels that move the loss least, to first order.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers, **options
        See :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner`; ``reduction`` and ``ranking``
        are those of all criteria.
    calibration : Calibration or iterable
        Batches of images and labels.
    loss : callable, optional
        ``loss(outputs, labels)``: the mean over images, or a number for each; default: cross
        entropy.
    joint : bool, default False
        Sum the terms of a filter before their size is taken.

    Examples
    --------
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 2)
    ... )
    >>> batch = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> pruner = TaylorPruner(net, config_list, calibration=[batch], dummy_input=batch[0])
    >>> int(pruner.compress()[1]["0"]["bias"].sum())
    4
    """

    class Options(GradientOptions):
        """Options of :class:`TaylorPruner`."""

        joint: bool = Field(False, description="Sum a filter's terms before their size is taken.")

    options: Options
    name = "taylor"
    one_measure = True

    def evidence(self, layers: Mapping[str, Layer], passes: Passes) -> Mapping[str, Tensor]:
        """Multiply each weight by the mean of its gradients."""
        weights = [trained_weight(layer, name) for name, layer in layers.items()]
        sums = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
        for loss, _ in passes.losses(trained=weights):
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
        return {
            name: layer.weight.to(torch.float64) * total / len(passes)
            for (name, layer), total in zip(layers.items(), sums, strict=True)
        }

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels by the size of their terms."""
        if self.options.joint:
            return self.combine([f.sum(1).abs() for f in filters])
        return self.combine([f.abs().sum(1) for f in filters])
