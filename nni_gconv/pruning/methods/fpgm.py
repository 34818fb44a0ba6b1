"""FPGM: filter pruning via geometric median.

Paper: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural
Networks Acceleration", CVPR 2019, https://arxiv.org/abs/1811.00250.

A filter close to the geometric median of its layer's filters carries what the others carry too and
is pruned first. The discrete median is found exactly: for filters ``w_1 .. w_F``

    D_j = sum_i || w_i - w_j ||          prune the filters with the smallest D_j

A norm criterion may go first (the paper's "mix"): a share ``norm_ratio`` of all filters, those of
the smallest L2 norm, is taken, and distances are summed among the remaining filters only.

With an evaluator the network is pruned before it trains, and again every few epochs. The masks act
in the forward alone: weights behind them stay as they are but for weight decay, are scored with the
others, and return when they are no longer among the most replaceable. The paper's code zeroes them
instead, and what is zero is chosen for ever; ``selection="locked"`` does that.

Unlike there, the distance asked for is the distance used, what is coupled is pruned together, and
the scale and shift behind a pruned filter are masked with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from pydantic import Field
from torch import Tensor, nn

from nni_gconv.pruning.channel_pruner import ChannelPruner
from nni_gconv.pruning.options import ChannelOptions, ScheduleOption
from nni_gconv.pruning.schedule import Schedule
from nni_gconv.pruning.selection.scores import (
    Distance,
    count,
    distance_sums,
    filter_norms,
    geometric_median_order,
)


class FPGMPruner(ChannelPruner):
    """Prune the filters nearest to the geometric median of their layer.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    config_list : list of dict
        NNI's config_list, with ``min_channels`` and ``round_to`` beside NNI's keys.
    evaluator : Evaluator, optional
        NNI's evaluator, to prune while training, from scratch or a trained network.
    existed_wrappers : dict, optional
        Set by ``from_compressor``.
    norm_ratio : float, default 0.0
        Share of all filters of a layer that the norm criterion takes first; it counts towards the
        layer's ``sparse_ratio``. 0 uses distances alone.
    distance : {"l2", "l1", "cosine"}, default "l2"
        Distance between filters.
    selection : {"soft", "locked"}, default "soft"
        Whether a filter pruned during training can return, or its weights, gradients and momentum
        are zero from then on.
    epoch_prune : int, default 1
        Filters are chosen anew every so many epochs, and after the last.
    schedule : str or dict, optional
        Default: ``{"name": "constant", "every": epoch_prune}`` with an evaluator that says how long
        an epoch is (``steps_per_epoch``; that of a recipe does), else ``"one-shot"``. A ramp or
        rounds take the place of `epoch_prune`.
    dummy_input, budget, coupling, masks
        See :class:`nni_gconv.pruning.channel_pruner.ChannelPruner`.

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

    reads_weights = False

    class Options(ChannelOptions):
        """Options of :class:`FPGMPruner`."""

        norm_ratio: float = Field(
            0.0, ge=0, lt=1, description="Share of filters that the norm criterion takes first."
        )
        distance: Distance = Field("l2", description="Distance between filters.")
        selection: Literal["soft", "locked"] = Field(
            "soft", description="Whether a filter pruned during training can return."
        )
        epoch_prune: int = Field(
            1, ge=1, description="Filters are chosen anew every so many epochs."
        )
        schedule: ScheduleOption | None = Field(  # type: ignore[assignment]
            None,
            description="Default: constant, every epoch_prune epochs; without training one-shot.",
        )

    options: Options

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, config_list, evaluator, existed_wrappers, **options)
        if self.options.schedule is None:
            told = getattr(evaluator, "steps_per_epoch", None) is not None
            every = self.options.epoch_prune
            self.schedule = Schedule("constant", every) if told else Schedule("one-shot")

    def begin_training(self) -> None:
        """Choose filters before the first step; a number of steps tells that of epochs."""
        steps, per_epoch = (self._length or (None, None))[0], self.clock.steps_per_epoch
        if self.options.schedule is None and self.clock.epochs is None and steps and per_epoch:
            self.clock.epochs = -(-steps // per_epoch)
        super().begin_training()

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels: the smallest norms first, then the smallest sums of distances."""
        norms = self.combine([filter_norms(f) for f in filters])
        small = torch.zeros(len(norms), dtype=torch.bool, device=norms.device)
        # A filter of zeros carries nothing, wherever the median lies.
        small |= norms == 0
        small[norms.argsort(stable=True)[: count(len(norms), self.options.norm_ratio)]] = True
        sums = []
        for matrix in filters:
            among = torch.zeros_like(norms)
            among[~small] = distance_sums(matrix[~small], self.options.distance)
            sums.append(among)
        return geometric_median_order(norms, self.combine(sums), small)

    def renew_masks(self) -> None:
        """Choose filters; those that are locked away lose their weights and their momentum."""
        super().renew_masks()
        if self.options.selection == "locked" and self.in_training:
            self.clear_masked()
