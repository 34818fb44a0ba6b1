"""What all channel pruners share: NNI's idiom on top of traced, coupled sets.

A method supplies one function, :meth:`ChannelPruner.rank`, that scores the channels of a coupled
set. This class reads the config_list, finds what is coupled by tracing, decides how many channels
go (ratio, threshold, global ranking or budget) and writes masks in which a pruned channel is
silent: its filter, its bias, and the scale and shift of every norm behind it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.config_list import nni_entries, resolve
from nni_gconv.display import Table
from nni_gconv.errors import ConfigError
from nni_gconv.graph import CoupledSet, Coupling, Member, trace
from nni_gconv.pruning.options import ChannelOptions
from nni_gconv.pruning.pruner import Masks, TrainedPruner, read_options, unwrapped_input
from nni_gconv.pruning.selection.allocation import Request, removal_steps, take
from nni_gconv.pruning.selection.budget import check_cuttable, check_goals, check_reachable, fit
from nni_gconv.pruning.selection.cost import CostModel
from nni_gconv.pruning.selection.coupled_sets import (
    agreed,
    asked_together,
    entry_beside,
    filter_scores,
    followers,
    step_limits,
    taken_channels,
    tied_weights,
    unit_matrix,
    with_coupled,
)
from nni_gconv.pruning.selection.earlier_masks import check_given, check_unmasked, earlier_masks
from nni_gconv.pruning.selection.latency import LatencyModel
from nni_gconv.pruning.selection.multiples import measured_multiples
from nni_gconv.pruning.selection.prunable import judged
from nni_gconv.pruning.selection.skipped import find_skipped, first_reason, skip_lines
from nni_gconv.pruning.table import channel_table
from nni_gconv.training import from_main_process

_logger = logging.getLogger(__name__)

#: ``{module: {target: scores}}``
Metrics = Mapping[str, Mapping[str, Tensor]]
#: Coupling, sets that can be pruned, layers to leave alone -> layers to be wrapped beside the sets.
FurtherLayers = Callable[[Coupling, Sequence[CoupledSet], frozenset[str]], Sequence[str]]


class ChannelPruner(TrainedPruner):
    """Base of pruners that remove whole channels.

    A method defines :meth:`rank`, and its options in a class ``Options`` derived from
    :class:`~nni_gconv.pruning.options.ChannelOptions`; it may override the public hooks of
    :mod:`nni_gconv.pruning.hooks`. ``docs/own_method.md`` has a whole one.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    config_list : list of dict
        NNI's config_list; ``min_channels`` and ``round_to`` may stand beside NNI's keys.
    evaluator : Evaluator, optional
        NNI's evaluator; its ``dummy_input`` is used for tracing when none is given here.
    existed_wrappers : dict, optional
        Set by :meth:`from_compressor`.
    dummy_input : Tensor, tuple or dict, optional
        Example arguments of the forward. Without one, common image sizes are tried.
    budget : dict, optional
        ``{"macs": 0.5}``: fraction of the dense model (or an absolute count) of ``macs``,
        ``params`` or ``latency`` (a fraction), instead of ratios. Needs `dummy_input`. Latency is
        measured on small models built for it, with the batch of `dummy_input`, so such masks
        depend on the machine and what else it does.
    coupling : {"mean", "max", "union"}, default "mean"
        How layers that share channels agree: by the mean or the largest of their scores, each
        relative to its layer's mean; or by union, where a channel goes only if every layer would
        remove it (fewer go than asked).
    schedule : str or dict, default "one-shot"
        When masks are made during training, see :mod:`nni_gconv.pruning.schedule`: a name, or a
        mapping such as ``{"name": "cubic", "end": 20}``. Ratios, thresholds and budgets move with
        it. NNI's ``LinearPruner`` and ``AGPPruner`` take its place where they drive the pruner.
    masks : dict, optional
        Masks that hold already and leave group convolutions, those of
        :class:`nni_gconv.GroupConvPruner`: their groups stay equally wide, budgets count them,
        and the masks returned are both together. ``from_compressor`` takes them from there.
    calibration, reconstruct : optional
        For methods that look at data, and for what is done with the weights left.
    **options
        Further fields of the class's ``Options``.

    Attributes
    ----------
    layers : dict of str to LayerConfig
        What is asked of each layer that the config_list selects.
    sets : list of CoupledSet
        What may lose channels.
    skipped : dict of str to str
        Layers that were selected and keep their channels, each with the reason.
    coupling, cost, latency
        The traced model, what it costs with channels gone, and how long it takes (None: not asked).

    Raises
    ------
    ConfigError
        The config_list or an option is wrong.
    BudgetError
        The budget cannot be reached with the layers selected; from :meth:`compress`: what of the
        masks can be cut does not meet it.
    """

    Options: type[ChannelOptions] = ChannelOptions
    options: ChannelOptions
    #: What scores are measured in where layers are ranked together; None: each layer's mean score.
    score_unit: float | None = None
    #: Channels that go with whole blocks, of which not even one has to stay; None: there are none.
    vanished: np.ndarray | None = None
    #: Whether layers that share channels are scored one by one, not by one :meth:`rank` of all.
    scores_apart = False

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        *,
        further_layers: FurtherLayers | None = None,
        **options: Any,
    ) -> None:
        asked = read_options(type(self), options)
        self.rule, self.budget = asked.coupling, asked.budget
        self.dummy_input = unwrapped_input(
            model, evaluator, asked, remedy="use from_compressor()", counted=True
        )
        layers, self._excluded = resolve(model, config_list)
        # A measurement differs from process to process.
        self.layers = from_main_process(measured_multiples(model, self.dummy_input, layers))
        graph, counts = asked.traced or (trace(model, self.dummy_input), None)
        self.layers = with_coupled(model, self.dummy_input, graph, self.layers, self._excluded)
        check_goals(self.layers, self.budget)
        self._given = asked.masks or earlier_masks(existed_wrappers, grouped=True)
        ties = tied_weights(model, self.layers)
        self.coupling = judged(
            model,
            self.dummy_input,
            lambda pins: Coupling.trace(
                model, self.dummy_input, tie=ties, masks=self._given, graph=graph, pin=pins.items()
            ),
            self.layers,
            self._excluded,
        )
        check_given(self.coupling, self._given, self.budget)
        self.cost = CostModel(model, self.dummy_input, self.coupling, counts)
        self.latency: LatencyModel | None = None
        if self.budget is not None and "latency" in self.budget:
            self.latency = LatencyModel(model, self.dummy_input, self.coupling)
        self.sets, self.skipped = find_skipped(self.coupling, self.layers)
        if not self.sets:
            raise ConfigError(f"config_list: nothing can be pruned: {first_reason(self.skipped)}")
        for line in skip_lines(self.skipped):
            _logger.warning(line)
        further: Sequence[str] = ()
        if further_layers is not None:
            kept = self._excluded | frozenset(existed_wrappers or ())
            further = further_layers(self.coupling, self.sets, kept)
        beside = followers(self.coupling, self.sets, further)
        unselected = {name: targets for name, targets in beside.items() if name not in self.layers}
        entries = [*nni_entries(self.layers), *map(entry_beside, unselected, unselected.values())]
        known = [*self.layers, *unselected]
        check_unmasked(existed_wrappers, known)
        compat.register_pruning_types(model, known)
        # As they were read: calibration images are gathered once.
        given = {name: getattr(asked, name) for name in options}
        super().__init__(model, entries, evaluator, existed_wrappers, **given)
        if self.budget is not None:
            for name in {member.module for coupled in self.sets for member in coupled.members}:
                # NNI's scheduling pruners move what has a number; by it a budget follows them.
                space = self._target_spaces[name]["weight"]
                space.max_sparse_ratio = self.layers[name].max_sparse_ratio
            # Said now and not after hours of training: what can go does not depend on scores.
            requests = [self._asked(s, np.zeros(s.size), s.members) for s in self.sets]
            check_reachable(self.budget, self.cost, self.sets, requests, self.latency)

    # -- what a method supplies -------------------------------------------------------------------

    @abstractmethod
    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score the channels of a set; low scores go first.

        All that most methods define. The other hooks below are filled; a criterion that looks at
        something else than weights gives it out by NNI's ``_collect_data``, in their shape.

        Parameters
        ----------
        filters : sequence of Tensor, each of shape (n, d)
            One matrix per layer of the set: row i holds all weights that make channel i there.

        Returns
        -------
        Tensor, shape (n,)
        """

    def combine(self, scores: Sequence[Tensor]) -> Tensor:
        """Join the scores that several layers give to the same channels, by the coupling rule."""
        if len(scores) == 1:
            return scores[0]
        relative = torch.stack([s / s.abs().mean().clamp_min(1e-30) for s in scores])
        return relative.amax(0) if self.rule == "max" else relative.mean(0)

    def channel_scores(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> np.ndarray:
        """Read the scores of a set's channels out of the filters' scores; low ones go first.

        Parameters
        ----------
        coupled : CoupledSet
            The set.
        metrics : mapping
            ``{layer: {"weight": score of each filter}}``.
        voter : str
            One of :meth:`voters` under the union rule, else "" or the set's first layer.
        """
        speaker = next((m for m in coupled.members if m.module == voter), coupled.members[0])
        scores = np.full(coupled.size, np.nan)
        scores[speaker.units] = metrics[speaker.module]["weight"].numpy()[speaker.rows]
        return scores

    def request(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> Request:
        """Gather what the layers of a set ask, with its channels in the order they would go.

        Parameters as for :meth:`channel_scores`.
        """
        # A budget has no voters: the limits of every layer of the set hold.
        alone = [m for m in coupled.members if m.module == voter and self.budget is None]
        members = alone or list(coupled.members)
        return self._asked(coupled, self.channel_scores(coupled, metrics, voter), members)

    def voters(self, coupled: CoupledSet) -> list[str]:
        """Name the layers whose scores count one by one under the union rule."""
        return list(dict.fromkeys(m.module for m in coupled.members))

    def settle(
        self, requests: list[Request], sets: Sequence[CoupledSet], metrics: Metrics
    ) -> list[Request]:
        """Change what is asked before anything is taken: for a method with a rule of its own.

        Parameters
        ----------
        requests : list of Request
            One a set, or under the union rule one a voter.
        sets : sequence of CoupledSet
            The set of each request.
        metrics : mapping
            As for :meth:`channel_scores`.
        """
        return requests

    def masks_of(self, removed: np.ndarray, metrics: Metrics) -> Masks:
        """Make masks for every wrapped target: what acts on a removed channel is zero.

        Parameters
        ----------
        removed : ndarray of bool, shape (classes,)
            Channels of the traced model, by their class.
        metrics : mapping
            What they were chosen by.
        """
        masks: Masks = {}
        silent = self.coupling.masks(removed)
        for module, targets in self._target_spaces.items():
            for target, space in targets.items():
                if isinstance(space.target, Tensor):
                    mask = silent.get(module, {}).get(target)
                    whole = torch.ones_like(space.target)
                    masks.setdefault(module, {})[target] = whole if mask is None else mask
        return masks

    # -- NNI's interface --------------------------------------------------------------------------

    def _final_masks_made(self) -> None:
        super()._final_masks_made()
        if self.budget is not None and self._driven_share() == 1:
            check_cuttable(self.budget, self.cost, self.get_masks(), self.vanished)

    def _collect_data(self) -> dict[str, dict[str, Tensor]]:
        """Weights as they are, without masks: a soft method can change its mind."""
        data: dict[str, dict[str, Tensor]] = {}
        for coupled in self.sets:
            for member in coupled.members:
                weight = self._target_spaces[member.module]["weight"].target.detach()
                given = self._given.get(member.module, {}).get("weight")
                data[member.module] = {"weight": weight if given is None else weight * given}
        return data

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Score every filter; filters that are one channel share a score (not under union)."""
        metrics: dict[str, dict[str, Tensor]] = {}
        for coupled in self.sets:
            matrices = [
                unit_matrix(data[m.module]["weight"], m.dim, m.rows, m.units, coupled.size)
                for m in coupled.members
            ]
            apart = self.scores_apart or self.rule == "union"
            shared = None if apart else self.rank(matrices)
            for member, matrix in zip(coupled.members, matrices, strict=True):
                scores = (self.rank([matrix]) if shared is None else shared).cpu().double()
                size = data[member.module]["weight"].shape[member.dim]
                own = metrics.setdefault(member.module, {})
                own["weight"] = filter_scores(scores, member, own.get("weight"), size)
        return metrics

    def _generate_sparsity(self, metrics: dict[str, dict[str, Tensor]]) -> Masks:
        return self.masks_of(self._removed(metrics), metrics)

    def _removed(self, metrics: Metrics) -> np.ndarray:
        """Classes that the budget, or the layers' ratios and thresholds, remove."""
        if self.budget is not None:
            requests = [self.request(s, metrics, s.members[0].module) for s in self.sets]
            requests = self.settle(requests, self.sets, metrics)
            budget = self.cost.ramped(self.budget, self.share * self._driven_share())
            return fit(budget, self.cost, self.sets, requests, self.latency)
        removed = self.coupling.empty()
        for coupled, gone in zip(self.sets, self._by_ratio(metrics), strict=True):
            removed[coupled.classes[gone]] = True
        return removed

    def _driven_share(self) -> float:
        """Share of a budget's goal to which one of NNI's scheduling pruners has come; else 1."""
        for name, layer in self.layers.items():
            now = self._target_spaces.get(name, {}).get("weight")
            if now is not None and now.max_sparse_ratio is not None and layer.max_sparse_ratio:
                return float(now.max_sparse_ratio / layer.max_sparse_ratio)
        return 1.0

    def _by_ratio(self, metrics: Metrics) -> list[np.ndarray]:
        """Channels of each set that its layers' ratios remove."""
        owners, requests = list[int](), list[Request]()
        for index, coupled in enumerate(self.sets):
            voters = self.voters(coupled) if self.rule == "union" else [""]
            for voter in voters:
                owners.append(index)
                asked = self.request(coupled, metrics, voter)
                requests.append(asked if len(voters) == 1 else self._vote(coupled, asked))
        requests = self.settle(requests, [self.sets[i] for i in owners], metrics)
        votes, outcome = list(map(taken_channels, requests, take(requests))), []
        for index, coupled in enumerate(self.sets):
            mine = [i for i, owner in enumerate(owners) if owner == index]
            gone = votes[mine[0]]
            if len(mine) > 1:
                limits = self._limits(coupled, coupled.members)
                gone = agreed([votes[i] for i in mine], [requests[i] for i in mine], **limits)
            outcome.append(gone)
        return outcome

    def _vote(self, coupled: CoupledSet, asked: Request) -> Request:
        """What one layer would remove: how many have to stay is said once, of what all agree on."""
        blocks = self._limits(coupled, coupled.members)["blocks"]
        return replace(asked, steps=removal_steps(asked.scores, blocks=blocks, to_empty=True))

    def _limits(self, coupled: CoupledSet, members: Sequence[Member]) -> dict[str, Any]:
        widths = [self._target_spaces[m.module]["weight"].shape[m.dim] for m in members]
        return step_limits(coupled, [self.layers[m.module] for m in members], widths)

    def _asked(self, coupled: CoupledSet, scores: np.ndarray, members: Sequence[Member]) -> Request:
        """Gather what some layers of a set ask; where they differ the more careful one wins."""
        # Ratios live in NNI's target space, where its scheduling pruners move them.
        asked = [self._target_spaces[m.module]["weight"] for m in members]
        settings = [self.layers[m.module] for m in members]
        steps = removal_steps(scores, **self._limits(coupled, members))
        most = [a.max_sparse_ratio for a in (asked if self.budget is None else settings)]
        request = asked_together(scores, steps, asked, self.share, most)
        groups = (s.global_group_id for s in settings if s.global_group_id is not None)
        return replace(request, group=next(groups, None), unit=self.score_unit)

    def requests(self) -> list[Request]:
        """Score the channels of each of :attr:`sets` by the weights as they are; mask nothing.

        Returns
        -------
        list of Request
            What is asked of each set, with its channels in the order they would go.
        """
        metrics = self._calculate_metrics(self._collect_data())
        return [self.request(coupled, metrics, "") for coupled in self.sets]

    def table(self) -> Table:
        """Show each set: its layers, how many channels stay, and why a layer was not pruned."""
        return channel_table(type(self).__name__, self.sets, self.get_masks(), self.skipped)
