"""Random: an order that looks at nothing; what every criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from nni_gconv.pruning.criteria.base import Criterion, CriterionOptions


class RandomPruner(Criterion):
    """Prune channels at random.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers, **options
        See :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner`; ``reduction`` and ``ranking``
        are those of all criteria.
    seed : int, default 0
        The same seed gives the same masks.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1))
    >>> pruner = RandomPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], seed=1)
    >>> int(pruner.compress()[1]["0"]["weight"].sum())
    2
    """

    class Options(CriterionOptions):
        """Options of :class:`RandomPruner`."""

        seed: int = Field(0, ge=0, lt=2**63, description="Of the order.")

    options: Options
    _generator: torch.Generator

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        self._generator = torch.Generator().manual_seed(self.options.seed)
        return super()._calculate_metrics(data)

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Draw a number for each channel."""
        return torch.rand(len(filters[0]), dtype=torch.float64, generator=self._generator)
