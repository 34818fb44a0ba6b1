"""Activation: weights weighed by how large their inputs are.

Paper: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models"
(Wanda), ICLR 2024, https://arxiv.org/abs/2306.11695; here with channels in place of single weights.

    score of filter i = || ( |W_ij| * ||X_j|| )_j ||_p,    ||X_j|| = sqrt(E[x_j^2])

A large weight on an input that is nearly always zero does nothing. Needs images, no labels, no
gradients; the mean is over images and positions. Relative to the mean of the set where sets are
ranked together, as norms are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from nni_gconv.groupconv import groups_of
from nni_gconv.pruning.criteria.base import CriterionOptions, DataCriterion, Layer
from nni_gconv.pruning.criteria.evidence import Passes
from nni_gconv.pruning.criteria.magnitude import ORDERS, Norm
from nni_gconv.pruning.selection.scores import filter_norms


class ActivationPruner(DataCriterion):
    """Prune the channels whose weights meet the smallest inputs.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers, **options
        See :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner`; ``reduction`` and ``ranking``
        are those of all criteria.
    calibration : Calibration, Tensor or iterable
        Images; labels are not looked at.
    norm : {"l1", "l2"}
        How the terms of a filter are summed up.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.Conv2d(2, 2, 1))
    >>> net[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(2, 2, 1, 1)
    >>> images = torch.tensor([4.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
    >>> config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> pruner = ActivationPruner(net, config_list, calibration=images, dummy_input=images)
    >>> pruner.compress()[1]["0"]["bias"].tolist()  # 2 * 1 is less than 1 * 4
    [1.0, 0.0]
    """

    class Options(CriterionOptions):
        """Options of :class:`ActivationPruner`."""

        norm: Norm = Field("l1", description="How the terms of a filter are summed up.")

    options: Options
    name = "activation"
    needs_labels = False

    def evidence(self, layers: Mapping[str, Layer], passes: Passes) -> Mapping[str, Tensor]:
        """Weigh each weight by the root mean square of what it reads."""
        sums: dict[str, Tensor] = {}
        counts = dict.fromkeys(layers, 0)

        def look(name: str, module: nn.Module, x: Tensor, _: Tensor) -> None:
            axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
            rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis]).to(torch.float64)
            sums[name] = sums.get(name, 0) + rows.square().sum(0)
            counts[name] += len(rows)

        hooks = {layer.module: partial(look, name) for name, layer in layers.items()}
        with passes.hooked(hooks):
            for _ in passes.outputs():
                pass
        return {
            name: layer.weight.to(torch.float64).abs()
            * _at_weights(layer.module, layer.weight, (sums[name] / counts[name]).sqrt())
            for name, layer in layers.items()
        }

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels by norms of weighed weights."""
        return self.combine([filter_norms(f, ORDERS[self.options.norm]) for f in filters])


def _at_weights(module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """Give a number of each input channel to the weights that read it."""
    taps = [1] * (weight.dim() - 2)
    if getattr(module, "transposed", False):
        return inputs.view(-1, 1, *taps)
    groups = groups_of(module)
    own = inputs.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return own.view(*own.shape, *taps)
