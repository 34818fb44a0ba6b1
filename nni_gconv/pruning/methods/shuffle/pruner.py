"""Structured Sparsification: group convolution and channel shuffle are learned together.

Paper: Zhang et al., "Structured Sparsification with Joint Optimization of Group Convolution and
Channel Shuffle", UAI 2021, https://arxiv.org/abs/2002.08127. Trained is

    loss + strength * sum over kernels (f, c) of cost(f, c) * |W[f, c]|_1

where the filters and the input channels of each layer are ordered such that its kernels gather in
diagonal blocks, in two first, in four next, and so on
(:mod:`nni_gconv.groupconv.partition.nested`). A kernel costs 1 outside the blocks of the first
split, a half outside those of the second, down to the next split after those that the layer bears
already; inside it costs nothing. At the end of each epoch the channels are ordered anew, each layer
is split as often as it can be for a small loss of its L1 norm, and the strength is raised if too
little can be saved by that.

Two ways to train it:

- ``penalty="subgradient"`` (the paper): its subgradient is added to the gradients. Weights hover
  around zero and never reach it.
- ``penalty="proximal"``: each step is followed by the proximal map of the penalty, with the step
  size that the subgradient would have had. Weights become zero exactly.

Unlike the paper's code, what is left are real group convolutions: masks are block-diagonal up to
permutations, which :class:`~nni_gconv.ModelSpeedup` folds into the neighbouring layers as far as
they go. Layers that meet in the same channels learn one order of them together (`sharing`), also
where they end with different group counts, so that few gathers are left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from pydantic import Field
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.graph import Coupling
from nni_gconv.groupconv.partition import l1
from nni_gconv.pruning.group_pruner import GroupPruner
from nni_gconv.pruning.group_sides import LiveLayers, Sharing, check_whole
from nni_gconv.pruning.methods.shuffle.channel_orders import ChannelOrders
from nni_gconv.pruning.methods.shuffle.hierarchy import next_strength
from nni_gconv.pruning.methods.shuffle.kernel_penalty import KernelPenalty
from nni_gconv.pruning.methods.shuffle.split_budget import SplitBudget
from nni_gconv.pruning.options import PrunerOptions
from nni_gconv.pruning.pruner import Masks, read_options, unwrapped_input
from nni_gconv.pruning.selection.earlier_masks import earlier_masks
from nni_gconv.training import from_main_process

#: Times its mean weight that the first strength would take from a layer in the whole training: what
#: the paper's 2e-6 come to in its 55 epochs of ImageNet.
_FIRST_SHARE = 6.0


class ShufflePruner(GroupPruner):
    """Learn which channels belong together, and in how many groups, while the network trains.

    Works from scratch and from a trained network. Without an evaluator the masks are made at once
    of the weights as they are; nothing then speaks for it and against
    :class:`~nni_gconv.GroupConvPruner`, whose search is the more thorough.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    config_list : list of dict
        NNI's config_list to select layers. ``num_groups`` fixes the group count of a layer,
        ``max_group_size`` limits the channels of its groups on the wider side; without a budget
        each layer has to have one of them. Layers that cannot be grouped stay as they are and are
        listed in :attr:`skipped` with the reason; so do convolutions that have groups already,
        since one order of channels is learned for a whole layer.
    evaluator : Evaluator, optional
        NNI's evaluator, to train with the penalty; without weight decay in the paper.
    existed_wrappers : dict, optional
        Set by ``from_compressor``; no channel of the layers selected may be silenced there.
    dummy_input : Tensor, tuple or dict, optional
        Example arguments of the forward. Without one, common image sizes are tried.
    budget : dict, optional
        ``{"params": 0.5, "macs": 0.5, "latency": 0.8}``, fractions of the dense model or counts.
        By latency the training is steered as measured layer by layer, and the groups are chosen as
        measured on the whole network.
    penalty : {"proximal", "subgradient"}, default "proximal"
        How it acts, see above.
    decay : float, default 0.5
        Cost outside the blocks of a split over that of the split before.
    threshold : float, default 0.1
        Share of its norm that a layer may lose when the training asks how far it can be split.
    delta_lambda : float, optional
        The first strength, and what it changes by after an epoch: it grows when the epoch saved
        less than is due, and falls once the budget is within reach. Default: what would take six
        times its mean weight from a layer over the training.
    warmup : int, default 0
        Epochs without penalty at the beginning. In the paper, from scratch: 5 of 60 on ImageNet,
        10 of 100 on CIFAR.
    scale_aware : bool, default False
        Let the strength of each layer follow its mean weight, since the scale of a weight in front
        of a batch norm means nothing.
    update_every : int, optional
        Order the channels anew every so many steps as well, not only after each epoch; 500 in the
        paper on ImageNet.
    levels : {"search", "threshold"}, default "search"
        How group counts are chosen in the end: such that most norm is kept within the budget; or
        each layer as many as lose no more than one share of the norm that is common to all, the
        least that meets the budget (the paper; not for latency), less the last splits that the
        budget does not need.
    sharing : {"blocks", "streams", "none"}, default "blocks"
        Which layers order the channels they meet in alike, see
        :class:`~nni_gconv.GroupConvPruner`; ``"none"`` is the paper's.
    max_groups : int, default 64
        No layer is split further.
    schedule : str or dict, default "one-shot"
        When masks are made, see :mod:`nni_gconv.pruning.schedule`: once after the training, or
        on the way, where each layer has fewer groups first. What is masked stays zero, and the
        penalty acts on the rest.

    Attributes
    ----------
    groups : dict of str to int
        Group count of each layer that can be grouped, 1 where it stays dense; the most it may have
        before masks are made.
    partitions : dict of str to Partition
        How each was split.
    skipped : dict of str to str
        Layers that were selected and cannot be grouped, each with the reason.
    strength : float
        Of the penalty, as it is now; the paper's lambda.

    Raises
    ------
    ConfigError
        The config_list or an argument is wrong.
    BudgetError
        The budget cannot be reached with the layers selected.

    Notes
    -----
    A hierarchy has the group counts 1, 2, 4, ... where these divide the filters F and the input
    channels C. Other divisors are split by their smallest prime factors first: 24 filters and 36
    channels have 1, 2, 4 and 12 groups.

    Examples
    --------
    >>> import torch
    >>> from nni_gconv import ModelSpeedup, ShufflePruner
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
    >>> example = torch.zeros(1, 8, 8, 8)
    >>> config_list = [{"op_types": ["Conv2d"]}]
    >>> pruner = ShufflePruner(net, config_list, dummy_input=example, budget={"macs": 0.5})
    >>> _, masks = pruner.compress()
    >>> pruner.unwrap_model()
    >>> small = ModelSpeedup(net, example, masks).speedup_model()
    >>> pruner.groups
    {'0': 2, '2': 2}
    """

    class Options(PrunerOptions):
        """Options of :class:`ShufflePruner`."""

        penalty: Literal["proximal", "subgradient"] = Field(
            "proximal", description="How it acts; proximal makes weights zero exactly."
        )
        decay: float = Field(
            0.5, ge=0, le=1, description="Cost outside a split's blocks over the one before."
        )
        threshold: float = Field(
            0.1, ge=0, le=1, description="Share of its norm that a layer may lose on the way."
        )
        delta_lambda: float | None = Field(
            None, ge=0, description="First strength, and what an epoch changes it by."
        )
        warmup: int = Field(0, ge=0, description="Epochs without penalty at the beginning.")
        scale_aware: bool = Field(False, description="Strength follows a layer's mean weight.")
        update_every: int | None = Field(
            None, ge=1, description="Order channels anew every so many steps as well."
        )
        levels: Literal["search", "threshold"] = Field(
            "search", description="How group counts are chosen in the end."
        )
        sharing: Sharing = Field(
            "blocks", description="Which layers order the channels they meet in alike."
        )
        max_groups: int = Field(64, ge=1, description="No layer is split further.")

    options: Options

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        given = read_options(type(self), options)
        self.dummy_input = unwrapped_input(
            model, evaluator, given, remedy="unwrap it and pass masks="
        )
        timed = "latency" in (given.budget or {})
        if given.levels == "threshold" and timed:
            raise ConfigError("levels: 'threshold' knows budgets of params and macs; use 'search'")
        self._choice = SplitBudget.of_model(
            model, self.dummy_input, config_list, given.budget, max_groups=given.max_groups
        )
        self._dense = copy.deepcopy(model) if timed else None
        counts = self._choice.counts
        self._given = given.masks or earlier_masks(existed_wrappers)
        graph = given.traced.graph if given.traced else None
        coupling = Coupling.trace(model, self.dummy_input, graph=graph)
        live = LiveLayers(model, coupling, list(counts), {})
        if self._given:
            check_whole(live, LiveLayers(model, coupling, list(counts), self._given))
        most = {name: counts[name][-1] for name in live.layers}
        super().__init__(
            model, live.layers, most, self._choice.skipped, evaluator, existed_wrappers, given
        )
        sides = live.shared(dict.fromkeys(most, 1), given.sharing)
        self._orders = ChannelOrders(counts, sides, given.decay)
        self._depths: dict[str, int] = {}
        self.strength, self._change, self._saved = 0.0, 0.0, 0.0
        self._acted, self._reachable = 0.0, 0.0
        self._active = KernelPenalty([], [], [])

    # -- orders and levels ------------------------------------------------------------------------

    def _reorder(self) -> None:
        """Order the channels for the L1 norms that the kernels have now."""
        norms = {name: l1(self._weight(name)) for name in self.groups}
        self._orders.follow({name: norm.double().cpu().numpy() for name, norm in norms.items()})
        self._orders.nested = from_main_process(self._orders.nested)

    def _resplit(self) -> None:
        """Choose the splits that are penalised; note how much of the saving is within reach.

        That is what layers save by the splits they bear, over what they have to.
        """
        borne = self._choice.splits(self._orders.kept(), self.options.threshold)
        self._reachable = self._sparsity(borne)
        if self.options.levels == "threshold":
            depths = {name: splits + 1 for name, splits in borne.items()}
            saved = self._choice.saved(borne)
        else:
            depths = {n: self._choice.counts[n].index(count) for n, count in self._aims().items()}
            within = {name: min(splits, depths[name]) for name, splits in borne.items()}
            whole = self._choice.saved(depths)
            saved = self._choice.saved(within) / whole if whole else 1.0
        self._depths, self._saved = from_main_process((depths, saved))

    def _sparsity(self, splits: Mapping[str, int]) -> float:
        """Share of the layers' weights that lie outside their groups after so many splits."""
        sizes = {name: self._weight(name).numel() for name in self.groups}
        left = sum(size / self._choice.counts[n][splits[n]] for n, size in sizes.items())
        return 1 - left / sum(sizes.values())

    def _aims(self) -> dict[str, int]:
        """Group count that each layer is to be left with."""
        kept = self._orders.kept()
        if self.options.levels == "threshold":
            return self._choice.by_threshold(kept)
        if self._dense is not None and self._depths:
            # What was measured once is not measured again: that would come to something else.
            return {name: self._choice.counts[name][depth] for name, depth in self._depths.items()}
        return self._choice.by_search(kept, self._orders.totals(), self._dense, self.dummy_input)

    def generate_masks(self) -> Masks:
        """Choose how many groups each layer is left with, and split it."""
        if not self.in_training:
            self._orders.nested, self._depths = {}, {}
        self._reorder()
        aims = from_main_process(self._aims())
        for name in self.groups:
            counts = self._choice.counts[name]
            way = counts[: counts.index(aims[name]) + 1]
            self.groups[name] = self._so_far(name, way)
        self.partitions = from_main_process(self._orders.partitions(self.groups))
        return self._masks()

    # -- training ---------------------------------------------------------------------------------

    @property
    def needs_epochs(self) -> bool:
        """Orders, levels and the strength are renewed once an epoch."""
        return True

    def check_training(self, epochs: int) -> None:
        """Refuse a warmup that leaves nothing of the training, and a schedule that is longer."""
        super().check_training(epochs)
        if epochs and self.options.warmup >= epochs:
            raise ConfigError(
                f"warmup: {self.options.warmup} epochs of {epochs} leave none to sparsify"
            )

    def begin_training(self) -> None:
        """Order the channels as they are now, and set the first strength."""
        if self.clock.epochs is None:
            raise ConfigError("compress: how strong the penalty has to be depends on max_epochs")
        self.check_training(self.clock.epochs)
        self._reorder()
        self._resplit()
        self._change = (
            self._first_strength()
            if self.options.delta_lambda is None
            else self.options.delta_lambda
        )
        self.strength = self._change
        super().begin_training()

    def _first_strength(self) -> float:
        epochs = (self.clock.epochs or 1) - self.options.warmup
        weight = float(np.mean([self._size(name) for name in self.groups]))
        step = max(self.step_size(group) for group in self.optimizer.param_groups)
        per_epoch = step * (self.clock.steps_per_epoch or 1)
        return _FIRST_SHARE * weight / (per_epoch * epochs) if per_epoch else 0.0

    def _size(self, name: str) -> float:
        return float(self._weight(name).detach().abs().mean())

    def before_epoch(self, epoch: int) -> None:
        """Spread the penalty over the kernels."""
        self._acted = self.strength if epoch >= self.options.warmup else 0.0
        self._spread(self._acted)

    def _spread(self, strength: float) -> None:
        self._active = KernelPenalty([], [], [])
        if not strength:
            return
        strengths = dict.fromkeys(self.groups, strength)
        if self.options.scale_aware:
            sizes = {name: self._size(name) for name in self.groups}
            mean = float(np.mean(list(sizes.values()))) or 1.0
            strengths = {name: strength * size / mean for name, size in sizes.items()}
        weights = [self._weight(name) for name in strengths]
        costs = self._orders.costs(self._depths)
        spread = [strengths[name] * costs[name] for name in strengths]
        self._active = KernelPenalty(self.optimizer.param_groups, weights, spread)

    def before_step(self) -> None:
        """Add the subgradient of the penalty."""
        if self.options.penalty == "subgradient":
            self._active.add_subgradient()

    def after_step(self) -> None:
        """Take the proximal step; order the channels anew every `update_every` steps."""
        super().after_step()
        if self.options.penalty == "proximal":
            self._active.shrink(self.optimizer.param_groups, self.step_size)
        if self.scheduled:
            self.clear_masked()
        if self.options.update_every and self.clock.step % self.options.update_every == 0:
            self._reorder()
            self.before_epoch(self.clock.epoch)

    def after_epoch(self, epoch: int) -> None:
        """Order the channels anew, split the layers anew, and adapt the strength."""
        super().after_epoch(epoch)
        before = self._saved
        self._reorder()
        self._resplit()
        warmup = self.options.warmup
        strength = next_strength(
            self.strength, saved=self._saved, before=before, target=1.0, epoch=epoch,
            epochs=max(self.clock.epochs or 0, epoch + 1), change=self._change, warmup=warmup,
        )  # fmt: skip
        # What a search aims at is all that is penalised, and goes in the end: never let go of it.
        self.strength = (
            max(strength, self.strength) if self.options.levels == "search" else strength
        )
        log = getattr(self.evaluator, "log", None)
        if log is not None:
            for name, picture in self._orders.pictures().items():
                log.image(f"shuffle/{name}", picture, epoch + 1)

    def epoch_metrics(self) -> dict[str, float]:
        """Return the strength that acted, and the sparsity that could be had from what it left."""
        numbers = {"lambda": self._acted, "reachable_sparsity": self._reachable}
        return {**super().epoch_metrics(), **numbers}

    def state_dict(self) -> dict[str, Any]:
        """Return orders, levels and strength beside what the base keeps."""
        return {
            **super().state_dict(),
            "orders": self._orders.state_dict(),
            "depths": dict(self._depths),
            "strength": [self.strength, self._change, self._saved],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._orders.load_state_dict(state["orders"])
        self._depths = dict(state["depths"])
        self.strength, self._change, self._saved = state["strength"]
