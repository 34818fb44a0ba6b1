"""FPGM: filter pruning via geometric median.

Paper: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural
Networks Acceleration", CVPR 2019, https://arxiv.org/abs/1811.00250.

A filter close to the geometric median of its layer's filters carries what the others carry too and
is pruned first. The discrete median is found exactly: for filters ``w_1 .. w_F``

    D_j = sum_i || w_i - w_j ||          prune the filters with the smallest D_j

A norm criterion may go first (the paper's "mix"): a share ``norm_ratio`` of all filters, those of
the smallest L2 norm, is taken, and distances are summed among the remaining filters only.

Unlike the paper's code, scores are computed on the unmasked weights, so that a filter pruned once
can return; the distance asked for is the distance used; and what is coupled is pruned together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.pruning.base import ChannelPruner, Rule
from nni_gconv.pruning.scores import (
    DISTANCES,
    Distance,
    count,
    distance_sums,
    filter_norms,
    geometric_median_order,
)

__all__ = ["FPGMPruner"]


class FPGMPruner(ChannelPruner):
    """Prune the filters nearest to the geometric median of their layer.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    config_list : list of dict
        NNI's config_list, with ``min_channels`` and ``round_to`` beside NNI's keys.
    evaluator : Evaluator, optional
        NNI's evaluator, for pruning while training.
    existed_wrappers : dict, optional
        Set by ``from_compressor``.
    norm_ratio : float, default 0.0
        Share of all filters of a layer that the norm criterion takes first; it counts towards the
        layer's ``sparse_ratio``. 0 uses distances alone.
    distance : {"l2", "l1", "cosine"}, default "l2"
        Distance between filters.
    dummy_input, budget, coupling
        See :class:`nni_gconv.pruning.base.ChannelPruner`.

    Examples
    --------
    >>> import torch
    >>> from nni_gconv import FPGMPruner, ModelSpeedup
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> pruner = FPGMPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}])
    >>> _, masks = pruner.compress()
    >>> pruner.unwrap_model()
    >>> ModelSpeedup(net, torch.zeros(1, 3, 32, 32), masks).speedup_model()[0].out_channels
    4
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        *,
        norm_ratio: float = 0.0,
        distance: Distance = "l2",
        dummy_input: Any = None,
        budget: Mapping[str, float] | None = None,
        coupling: Rule = "mean",
    ) -> None:
        if distance not in DISTANCES:
            raise ConfigError(unknown_name("distance", distance, DISTANCES, "distance"))
        if not 0 <= norm_ratio < 1:
            raise ConfigError(f"norm_ratio: {norm_ratio!r} is not allowed (a number from 0 to 1)")
        self.norm_ratio = norm_ratio
        self.distance = distance
        super().__init__(
            model,
            config_list,
            evaluator,
            existed_wrappers,
            dummy_input=dummy_input,
            budget=budget,
            coupling=coupling,
        )

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels: the smallest norms first, then the smallest sums of distances."""
        norms = self.combine([filter_norms(f) for f in filters])
        small = torch.zeros(len(norms), dtype=torch.bool, device=norms.device)
        small[norms.argsort(stable=True)[: count(len(norms), self.norm_ratio)]] = True
        sums = []
        for matrix in filters:
            among = torch.zeros_like(norms)
            among[~small] = distance_sums(matrix[~small], self.distance)
            sums.append(among)
        return geometric_median_order(norms, self.combine(sums), small)
