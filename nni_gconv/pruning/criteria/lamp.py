"""LAMP: layer-adaptive magnitude.

Paper: Lee, Park, Mo, Ahn, Shin, "Layer-Adaptive Sparsity for the Magnitude-based Pruning", ICLR
2021, https://arxiv.org/abs/2010.07611; here with channels in place of single weights.

    score of channel i = n_i / sum of all n_j >= n_i in the same set,    n_i = || W_i ||^2

The order inside a set is that of norms. What differs is the comparison of sets: the score says how
much of what is left at that moment goes with the channel, the last one always scores 1, and so
sets can be ranked together without emptying any. Use it with ``ranking: global``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nni_gconv.pruning.criteria.base import Criterion
from nni_gconv.pruning.selection.scores import filter_norms


class LampPruner(Criterion):
    """Prune the channels that carry the least of what is left of their set.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers, **options
        See :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner`; ``reduction`` and ``ranking``
        are those of all criteria. Squared norms of coupled layers are joined, by default added.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1))
    >>> net[0].weight.data = torch.tensor([3.0, -1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    >>> pruner = LampPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], ranking="global")
    >>> pruner.compress()[1]["0"]["weight"].flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
    """

    one_measure = True

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels by their share of the energy that is left once smaller ones have gone."""
        return lamp_scores(self.combine([filter_norms(f).square() for f in filters]))


def lamp_scores(energies: Tensor) -> Tensor:
    """Share of each channel in the energy of those that are no smaller.

    Examples
    --------
    >>> lamp_scores(torch.tensor([9.0, 1.0, 0.0], dtype=torch.float64)).tolist()
    [1.0, 0.1, 0.0]
    """
    values, order = energies.sort(stable=True)
    left = values.flip(0).cumsum(0).flip(0)
    return torch.empty_like(energies).scatter_(0, order, values / left.clamp_min(1e-300))
