"""Magnitude: the norm of a channel's weights.

Papers: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (l1), and many since (l2).

    score of filter i = || W_i ||_p

The cheapest criterion, which looks at no data. Norms of different layers do not compare as they
are: ranked together they are taken relative to the mean of their set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from nni_gconv.pruning.criteria.base import Criterion, CriterionOptions
from nni_gconv.pruning.selection.scores import filter_norms

Norm = Literal["l1", "l2"]
ORDERS: dict[Norm, int] = {"l1": 1, "l2": 2}


class MagnitudePruner(Criterion):
    """Prune the channels with the smallest weights.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers, **options
        See :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner`; ``reduction`` and ``ranking``
        are those of all criteria.
    norm : {"l2", "l1"}
        Which norm of a filter's weights.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1))
    >>> net[0].weight.data = torch.tensor([3.0, -1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    >>> pruner = MagnitudePruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], norm="l1")
    >>> pruner.compress()[1]["0"]["weight"].flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
    """

    class Options(CriterionOptions):
        """Options of :class:`MagnitudePruner`."""

        norm: Norm = Field("l2", description="Norm of a filter's weights.")

    options: Options

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels by norms."""
        return self.combine([filter_norms(f, ORDERS[self.options.norm]) for f in filters])
