"""GSparsity: filters die of a group lasso while the network trains, and the dead are cut.

Paper: Chatzimichailidis et al., "GSparsity: Unifying Network Pruning and Neural Architecture Search
by Group Sparsity", AutoML 2022 (late-breaking), https://openreview.net/forum?id=r0GeE-arUe5.
Trained is

    loss + sum over filters f of gain * scale(size of f) * |f|

by :class:`~nni_gconv.training.proxsgd.ProxSGD`, which the evaluator has to train with (in a recipe:
``sparsify: {optimizer: {name: ProxSGD}}``). With any other optimizer every step of it is followed
by the proximal map of the penalty, filters shortened by ``lr * gain * scale``: proximal gradient
descent, whose dead filters are exactly zero.

Unlike the paper's code this works on every traced network. What is coupled dies together: a channel
that several layers make goes when the filters of all of them are dead. A channel that is dead at
the end of an epoch is silenced from then on, with the shift of the norm behind it: what the norm
makes of a zero filter is a constant, and a network that trains with it misses it when it is cut.
And one training meets a `budget`, because the gain follows what it has brought so far.

Whole blocks may vanish, see :mod:`nni_gconv.pruning.methods.gsparsity.dead_blocks`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.graph import CoupledSet, Member
from nni_gconv.pruning.channel_pruner import ChannelPruner, Metrics
from nni_gconv.pruning.methods.gsparsity.dead_blocks import DeadBlocks
from nni_gconv.pruning.methods.gsparsity.dead_channels import (
    SetState,
    dead_classes,
    dead_sets,
    from_threshold,
)
from nni_gconv.pruning.methods.gsparsity.group_lasso import (
    NormSpread,
    gain_factor,
    layer_gains,
    norm_scale,
    norms_behind,
    per_channel,
    possible_loss,
    relative_norms,
    shorten_filters,
    slowest_loss,
    still_to_save,
)
from nni_gconv.pruning.methods.gsparsity.options import GSparsityOptions
from nni_gconv.pruning.pruner import Masks, read_options
from nni_gconv.pruning.selection.allocation import Request
from nni_gconv.pruning.selection.budget import fit
from nni_gconv.pruning.selection.scores import filter_norms
from nni_gconv.training import ProxSGD, from_main_process

_logger = logging.getLogger(__name__)

#: All sets are ranked together under a budget: the training has said which layers can spare what.
_ALL = "all layers"


class GSparsityPruner(ChannelPruner):
    """Prune the filters that a group lasso brings to zero during training.

    Parameters
    ----------
    model, existed_wrappers
        As in NNI.
    config_list : list of dict
        NNI's config_list; ``gain``, ``min_channels`` and ``round_to`` may stand beside NNI's keys.
        The layers it selects are penalised as far as they can be pruned: select the inner
        convolutions of blocks (the paper's "conv12"), or all of them ("all-conv", where streams of
        residual networks can become narrower too).
    evaluator : Evaluator, optional
        NNI's evaluator. Without one the weights are taken as they are, for a network that was
        trained with the penalty elsewhere.
    gain : float, default 0.05
        Gain of the layers whose entries have no ``gain`` of their own. The paper doubles it in
        the two middle stages of a ResNet: ``{"op_names_re": ["layer[23]"], "gain": 0.1}``. With a
        budget it is what the training begins with.
    threshold : float, default 1e-6
        A filter whose L2 norm is at most this is dead. Layers without ``sparse_ratio`` or
        ``sparse_threshold`` lose their dead channels, unless there is a budget.
    normalization : {"div", "mul", "none"}, optional
        How the gain depends on the size of filters, see
        :func:`~nni_gconv.training.proxsgd.gain_scale`. Default: what a ProxSGD has, else "div".
    score : {"norm", "folded"}, default "norm"
        What ranks living filters where a ratio or a budget asks for more than the dead: their
        norm, or that of the filter with the batch norm behind it folded in. Either relative to the
        largest of the layer.
    silence : bool, default True
        Silence dead channels at the end of each epoch, for good. False leaves that to the end of
        the training (the paper).
    ramp : float, default 0.7
        Share of the training after which a budget is met, at the latest. From then on nothing is
        penalised any more and the living recover.
    dummy_input, budget, coupling, schedule
        See :class:`nni_gconv.pruning.channel_pruner.ChannelPruner`. A threshold takes a channel
        only if all its filters are dead, whatever `coupling` says. A `schedule` prunes by rank at
        its own times; the gain stays what it is then.

    Attributes
    ----------
    settled : bool
        Whether the masks that meet the budget are made.

    Raises
    ------
    ConfigError
        The config_list or an argument is wrong.
    BudgetError
        The budget cannot be reached with the layers selected.

    Notes
    -----
    With a budget the gain of all layers is multiplied after each epoch by
    :func:`~nni_gconv.pruning.methods.gsparsity.group_lasso.gain_factor` of what those channels
    lost that the budget would take now, the ones with the smallest scores. Once dead channels save
    enough, or after `ramp`, masks are made that meet the budget exactly and stay: they take the
    dead first, then the living with the smallest scores. A line in the log says how much the dead
    have saved. That is little where the learning rates sum up to less than 5 or so, since a dying
    filter loses `lr` of its norm in a step of ProxSGD; a larger rate, more epochs and
    ``exact_zeros`` help.

    Examples
    --------
    >>> import torch
    >>> from nni_gconv import GSparsityPruner, ModelSpeedup
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> _ = net[0].weight.data[:5].zero_()
    >>> pruner = GSparsityPruner(net, [{"op_names": ["0"]}])
    >>> _, masks = pruner.compress()
    >>> pruner.unwrap_model()
    >>> ModelSpeedup(net, torch.zeros(1, 3, 32, 32), masks).speedup_model()[0].out_channels
    3
    """

    score_unit, scores_apart = 1.0, True

    Options = GSparsityOptions
    options: GSparsityOptions

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        given = read_options(type(self), options)
        gains, config_list = layer_gains(model, config_list, given.gain)
        if given.budget is None:
            everything = {"op_names": list(gains), "sparse_threshold": given.threshold}
            config_list = [everything, *config_list]
        found: list[DeadBlocks] = []

        def ends(*traced: Any) -> Sequence[str]:
            """Layers that have to be masked for a block to vanish."""
            found.append(DeadBlocks(*traced))
            return found[0].ends

        super().__init__(
            model, config_list, evaluator, existed_wrappers, further_layers=ends, **options
        )
        self.gains, self._blocks = gains, found[0]
        self._norm_behind = norms_behind(self.coupling)
        self.settled = False
        self._before: list[np.ndarray] = []
        self._proximal = False

    # -- scores -----------------------------------------------------------------------------------

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score the channels of a layer by the norms of their filters."""
        return self.combine([filter_norms(f) for f in filters])

    def channel_scores(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> np.ndarray:
        """Norms themselves where a threshold asks; else relative to the largest of each layer."""
        members = coupled.members
        if self.rule == "union" and self.budget is None:
            members = tuple(m for m in members if m.module == voter) or members
        norms = self._norms(coupled, metrics, members)
        spaces = [self._target_spaces[m.module]["weight"] for m in members]
        if any(space.sparse_threshold is not None for space in spaces):
            return np.asarray(np.max(norms, axis=0))
        scales = None
        if self.options.score == "folded":
            scales = [self._scale_behind(member, coupled.size) for member in members]
        relative = relative_norms(norms, self.options.threshold, scales)
        join = np.mean if self.rule == "mean" else np.max
        return np.asarray(join(relative, axis=0))

    def _norms(
        self, coupled: CoupledSet, metrics: Metrics, members: Sequence[Member] = ()
    ) -> list[np.ndarray]:
        """Norms of the channels of a set in each of its layers, or in some of them."""
        return [
            per_channel(m, metrics[m.module]["weight"].numpy(), coupled.size)
            for m in members or coupled.members
        ]

    def _scale_behind(self, member: Member, size: int) -> np.ndarray:
        """Factor of the batch norm behind a layer, for each channel; 1 without one."""
        name = self._norm_behind.get(member.module)
        norm: Any = None if name is None else self.coupling.graph.modules[name]
        if name is None or norm.running_var is None:
            return np.ones(size)
        gamma = self._target_spaces.get(name, {}).get("weight")
        return per_channel(member, norm_scale(norm, gamma and gamma.target), size)

    # -- what goes --------------------------------------------------------------------------------

    def request(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> Request:
        """Rank all sets together under a budget."""
        request = super().request(coupled, metrics, voter)
        if self.budget is not None and request.group is None:
            return replace(request, group=_ALL)
        return request

    def settle(
        self, requests: list[Request], sets: Sequence[CoupledSet], metrics: Metrics
    ) -> list[Request]:
        """Let what is in a dead block go first, since none of it costs anything any more."""
        indices, _ = self._blocks.taken_by(self._died(metrics))
        taken = {id(self.sets[index]) for index in indices}
        return [
            replace(r, scores=np.full(s.size, -1.0), steps=[np.arange(s.size)])
            if id(s) in taken
            else from_threshold(r)
            for r, s in zip(requests, sets, strict=True)
        ]

    def masks_of(self, removed: np.ndarray, metrics: Metrics) -> Masks:
        """Complete what takes a block with it."""
        died = from_main_process(self._died(metrics, removed))
        taken, ends = self._blocks.taken_by(died)
        self.vanished = self.coupling.empty()
        for index in taken:
            self.vanished[self.sets[index].classes] = True
        masks = super().masks_of(removed | self.vanished, metrics)
        for name in ends:
            masks[name] = {target: torch.zeros_like(mask) for target, mask in masks[name].items()}
        return masks

    def _states(self, metrics: Metrics) -> list[SetState]:
        return [
            SetState(s, norms, self.request(s, metrics, ""), self._limits(s, s.members))
            for s, norms in zip(self.sets, self._largest_norms(metrics), strict=True)
        ]

    def _died(self, metrics: Metrics, removed: np.ndarray | None = None) -> set[int]:
        return dead_sets(self._states(metrics), self.options.threshold, removed)

    def _dead(self, metrics: Metrics) -> np.ndarray:
        return dead_classes(self._states(metrics), self.options.threshold, self.coupling.empty())

    # -- training ---------------------------------------------------------------------------------

    @property
    def needs_epochs(self) -> bool:
        """Gains and dead channels are looked at once an epoch."""
        return super().needs_epochs or (self._acts and self.budget is not None)

    @property
    def _acts(self) -> bool:
        """Whether the training is ours to steer, not a schedule's or another pruner's."""
        return not self.scheduled and self.interval_steps < 0

    def prepare_training(self) -> None:
        """Tell the optimizer which parameters have which gain."""
        super().prepare_training()
        self.settled = False
        filters: dict[tuple[float, int], dict[int, nn.Parameter]] = {}
        for member in (member for coupled in self.sets for member in coupled.members):
            weight = self._target_spaces[member.module]["weight"].target
            gain = self.gains[member.module]
            filters.setdefault((gain, member.dim), {})[id(weight)] = weight
        self._proximal = not isinstance(self.optimizer, ProxSGD)
        rule = self.options.normalization or ("div" if self._proximal else None)
        for (gain, dim), weights in filters.items():
            changes = {} if rule is None else {"normalization": rule}
            self.split_groups(weights.values(), mu=gain, filter_dim=dim, **changes)

    def before_epoch(self, epoch: int) -> None:
        """Remember the norms that the epoch begins with."""
        super().before_epoch(epoch)
        if self._acts and self.budget is not None:
            if self.clock.epochs is None:
                raise ConfigError("budget: give compress() max_epochs, in which it is to be met")
            self._before = self._largest_norms(self._metrics())

    def after_step(self) -> None:
        """Follow a step of another optimizer by the proximal map of the penalty."""
        if self._proximal:
            for group in self.optimizer.param_groups:
                if group.get("mu"):
                    shorten_filters(group)
        super().after_step()

    def after_epoch(self, epoch: int) -> None:
        """Silence what has died, and steer towards the budget."""
        super().after_epoch(epoch)
        if not self._acts or self.settled:
            return
        if self.budget is not None:
            self._steer(epoch + 1, self.budget)
        elif self.options.silence:
            self._mask_dead(self._metrics())

    def finish_training(self) -> None:
        """Make the final masks, unless those that meet the budget are made."""
        if not self.settled:
            self._log_spread()
            super().finish_training()

    def norm_spread(self) -> NormSpread:
        """Count the living, the dead and what is between them, over the layers penalised."""
        metrics = self._metrics()
        return NormSpread.of([n for s in self.sets for n in self._norms(s, metrics)])

    def _log_spread(self) -> None:
        spread = self.norm_spread()
        level = logging.WARNING if spread.between > 0.05 * spread.total else logging.INFO
        _logger.log(level, "GSparsity: %s", spread)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the budget is met, and with which blocks; gains are the optimizer's."""
        vanished = None if self.vanished is None else torch.from_numpy(self.vanished)
        return {**super().state_dict(), "settled": self.settled, "vanished": vanished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.settled = state["settled"]
        vanished = state.get("vanished")
        self.vanished = None if vanished is None else vanished.cpu().numpy()

    # -- the way to a budget ----------------------------------------------------------------------

    def _steer(self, epochs: int, budget: Mapping[str, float]) -> None:
        """Stop at the budget, or move the gain by how fast filters die after so many epochs."""
        metrics = self._metrics()
        dead = self._dead(metrics)
        left = still_to_save(budget, self.cost, dead, self.latency)
        left, lost = from_main_process((left, self._lost(metrics, budget)))
        ramp = round(self.options.ramp * (self.clock.epochs or 0))
        if left <= 0 or epochs >= ramp:
            self._log_spread()
            said = "GSparsity: after %d epochs the dead save %.0f%% of what the budget asks for"
            _logger.info(said, epochs, 100 * (1 - left))
            self.settled = True
            self.renew_masks()
            self._multiply_gains(0.0)
            return
        steps = None if self._proximal else self.clock.steps_per_epoch or 1
        possible = possible_loss(self.optimizer.param_groups, steps)
        self._multiply_gains(gain_factor(lost, ramp - epochs, possible))
        if self.options.silence:
            self._mask_dead(metrics, dead)

    def _lost(self, metrics: Metrics, budget: Mapping[str, float]) -> float:
        """Share of their norm that those lost in an epoch which the budget would take now."""
        requests = [self.request(s, metrics, "") for s in self.sets]
        # Measuring takes long, and MACs are near enough to say which channels would go.
        counted = {"macs" if m == "latency" else m: v for m, v in sorted(budget.items())}
        going = fit(counted, self.cost, self.sets, requests)
        norms = zip(self._before, self._largest_norms(metrics), strict=True)
        return slowest_loss(
            [
                (before, now, (now > self.options.threshold) & going[coupled.classes])
                for coupled, (before, now) in zip(self.sets, norms, strict=True)
            ]
        )

    def _metrics(self) -> Metrics:
        return self._calculate_metrics(self._collect_data())

    def _largest_norms(self, metrics: Metrics) -> list[np.ndarray]:
        return [np.max(self._norms(s, metrics), axis=0) for s in self.sets]

    def _mask_dead(self, metrics: Metrics, dead: np.ndarray | None = None) -> None:
        """Mask what has died, or what is known to have."""
        found = self._dead(metrics) if dead is None else dead
        self.update_masks(self.masks_of(from_main_process(found), metrics))

    def _multiply_gains(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            if group.get("mu"):
                group["mu"] *= factor
