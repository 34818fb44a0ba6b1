"""What all channel pruners share: NNI's idiom on top of traced, coupled sets.

A method supplies one function, :meth:`ChannelPruner.rank`, that scores the channels of a coupled
set. This class reads the config_list, finds what is coupled by tracing, decides how many channels
go (ratio, threshold, global ranking or budget) and writes masks in which a pruned channel is
silent: its filter, its bias, and the scale and shift of every norm behind it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from rich.table import Table
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.config_list import nni_entries, resolve
from nni_gconv.errors import ConfigError, check_model
from nni_gconv.graph import CoupledSet, Coupling, Member, example_input
from nni_gconv.pruning.pruner import Masks
from nni_gconv.pruning.schedule import Schedule
from nni_gconv.pruning.scheduled import ScheduledPruner
from nni_gconv.pruning.selection.allocation import Request, removal_steps, take
from nni_gconv.pruning.selection.budget import check_reachable, fit
from nni_gconv.pruning.selection.cost import CostModel, parse_budget
from nni_gconv.pruning.selection.coupled_sets import (
    agreed,
    check_given,
    check_unmasked,
    earlier_masks,
    first_reason,
    followers,
    joined_masks,
    listed,
    loud,
    skip_lines,
    step_limits,
    taken_channels,
    tied_weights,
    unit_matrix,
)
from nni_gconv.pruning.selection.latency import LatencyModel

__all__ = ["ChannelPruner", "Masks", "Rule"]

_logger = logging.getLogger(__name__)

Rule = Literal["mean", "max", "union"]
#: ``{module: {target: scores}}``
Metrics = Mapping[str, Mapping[str, Tensor]]
_RULES = ("mean", "max", "union")


class ChannelPruner(ScheduledPruner):
    """Base of pruners that remove whole channels.

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
        ``params`` or ``latency`` (a fraction), in place of ratios. Needs `dummy_input`. Latency is
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

    Raises
    ------
    ConfigError
        The config_list or an argument is wrong.
    BudgetError
        The budget cannot be reached with the layers selected.
    """

    #: What scores are measured in where layers are ranked together; None: each layer's mean score.
    score_unit: float | None = None
    #: Whether layers that share channels are scored one by one, not by one :meth:`rank` of all.
    scores_apart = False

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        *,
        dummy_input: Any = None,
        budget: Mapping[str, float] | None = None,
        coupling: Rule = "mean",
        schedule: Schedule | Mapping[str, Any] | str = "one-shot",
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        if coupling not in _RULES:
            raise ConfigError(
                f"coupling: {coupling!r} is not allowed (allowed: {', '.join(_RULES)})"
            )
        check_model(model)
        if compat.is_wrapped(model):
            raise ConfigError("the model is wrapped by another pruner: use from_compressor()")
        self.rule = coupling
        self.layers, self._excluded = resolve(model, config_list)
        if dummy_input is None and evaluator is not None:
            dummy_input = compat.evaluator_input(evaluator)
        self.budget = parse_budget(budget) if budget is not None else None
        if self.budget is not None and dummy_input is None:
            raise ConfigError("budget: needs dummy_input= to count what the model costs")
        self._check_budget_alone()
        self.dummy_input = example_input(model) if dummy_input is None else dummy_input
        self._given = masks or earlier_masks(existed_wrappers, grouped=True)
        self.coupling = Coupling.trace(
            model, self.dummy_input, tie=tied_weights(model, self.layers), masks=self._given
        )
        check_given(self.coupling, self._given, self.budget)
        self.cost = CostModel(model, self.dummy_input, self.coupling)
        self.latency: LatencyModel | None = None
        if self.budget is not None and "latency" in self.budget:
            self.latency = LatencyModel(model, self.dummy_input, self.coupling)
        self.skipped = self._find_skipped()
        self.sets = [s for i, s in enumerate(self.coupling.sets) if i not in self._skipped_sets]
        if not self.sets:
            raise ConfigError(f"config_list: nothing can be pruned: {first_reason(self.skipped)}")
        for line in skip_lines(self.skipped):
            _logger.warning(line)
        entries = [*nni_entries(self.layers), *self._follower_entries()]
        names = [entry["op_names"][0] for entry in entries]
        check_unmasked(existed_wrappers, names)
        compat.register_pruning_types(model, names)
        super().__init__(model, entries, evaluator, existed_wrappers, schedule=schedule)
        if self.budget is not None:
            # Said now and not after hours of training: what can go does not depend on scores.
            check_reachable(self.budget, self.cost, self.sets, self._unscored(), self.latency)

    # -- what a method supplies -------------------------------------------------------------------

    @abstractmethod
    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score the channels of a set; low scores go first.

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

    # -- reading the configuration ----------------------------------------------------------------

    def _check_budget_alone(self) -> None:
        for name, layer in self.layers.items():
            given = [
                key
                for key in ("sparse_ratio", "sparse_threshold")
                if getattr(layer, key) is not None
            ]
            if self.budget is not None and given:
                raise ConfigError(f"budget: {name} has a {given[0]} too; give one or the other")
            if self.budget is None and not given:
                raise ConfigError(
                    f"config_list: {name} has neither sparse_ratio nor sparse_threshold, and there "
                    "is no budget"
                )

    def _find_skipped(self) -> dict[str, str]:
        """Say for every selected layer that keeps channels why it does."""
        reasons = [self._reason(coupled) for coupled in self.coupling.sets]
        going = self.coupling.empty()
        for coupled, reason in zip(self.coupling.sets, reasons, strict=True):
            going[coupled.classes] = reason is None
        readers = loud(self.coupling, going)
        skipped: dict[str, str] = {}
        self._skipped_sets: set[int] = set()
        for index, (coupled, known) in enumerate(zip(self.coupling.sets, reasons, strict=True)):
            reader = next((readers[c] for c in coupled.classes.tolist() if c in readers), None)
            reason = known
            if reason is None and reader is not None:
                reason = (
                    f"what follows it turns a masked channel into a constant that {reader} reads"
                )
            if reason is not None:
                self._skipped_sets.add(index)
                for name in (m.module for m in coupled.members if m.module in self.layers):
                    skipped.setdefault(name, reason)
        return skipped

    def _reason(self, coupled: CoupledSet) -> str | None:
        outside = [m.module for m in coupled.members if m.module not in self.layers]
        if coupled.reason is None and outside:
            how = "excludes" if outside[0] in self._excluded else "does not select"
            return f"its channels are coupled to {outside[0]}, which the config_list {how}"
        return coupled.reason

    def _follower_entries(self) -> list[dict[str, Any]]:
        """Entries for norms and unselected layers whose biases a pruned channel runs through."""
        going = self.coupling.empty()
        for coupled in self.sets:
            going[coupled.classes] = True
        return [
            {"op_names": [name], "target_names": ["weight", "bias"]}
            for name in followers(self.coupling, going)
            if name not in self.layers
        ]

    # -- NNI's hooks ------------------------------------------------------------------------------

    def _collect_data(self) -> dict[str, dict[str, Tensor]]:
        """Weights as they are, without masks: a soft method can change its mind."""
        data: dict[str, dict[str, Tensor]] = {}
        for coupled in self.sets:
            for member in coupled.members:
                target = self._target_spaces[member.module]["weight"].target
                given = self._given.get(member.module, {}).get("weight")
                weight = target.detach()
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
                scores = (self.rank([matrix]) if shared is None else shared).to(
                    "cpu", torch.float64
                )
                size = data[member.module]["weight"].shape[member.dim]
                blank = torch.full((size,), torch.nan, dtype=torch.float64)
                row = metrics.setdefault(member.module, {"weight": blank})["weight"]
                row[torch.from_numpy(member.rows)] = scores[torch.from_numpy(member.units)]
        return metrics

    def _generate_sparsity(self, metrics: dict[str, dict[str, Tensor]]) -> Masks:
        removed = self.coupling.empty()
        if self.budget is not None:
            requests = [self._request(s, metrics, s.members[0].module) for s in self.sets]
            budget = self.cost.ramped(self.budget, self.share)
            removed = fit(budget, self.cost, self.sets, requests, self.latency)
        else:
            for coupled, gone in zip(self.sets, self._by_ratio(metrics), strict=True):
                removed[coupled.classes[gone]] = True
        return self._masks(removed)

    def _by_ratio(self, metrics: Metrics) -> list[np.ndarray]:
        """Channels of each set that its layers' ratios remove."""
        owners: list[int] = []
        requests: list[Request] = []
        for index, coupled in enumerate(self.sets):
            for voter in self._voters(coupled) if self.rule == "union" else [""]:
                owners.append(index)
                requests.append(self._request(coupled, metrics, voter))
        requests = self._settle(requests)
        votes = [taken_channels(r, n) for r, n in zip(requests, take(requests), strict=True)]
        outcome = []
        for index, coupled in enumerate(self.sets):
            mine = [i for i, owner in enumerate(owners) if owner == index]
            if len(mine) == 1:
                outcome.append(votes[mine[0]])
            else:
                limits = self._limits(coupled, coupled.members)
                outcome.append(
                    agreed([votes[i] for i in mine], [requests[i] for i in mine], **limits)
                )
        return outcome

    def _voters(self, coupled: CoupledSet) -> list[str]:
        """Whose scores count one by one under the union rule."""
        return list(dict.fromkeys(m.module for m in coupled.members))

    def _settle(self, requests: list[Request]) -> list[Request]:
        """Let a method with a rule of its own turn what is asked into thresholds."""
        return requests

    def _limits(self, coupled: CoupledSet, members: Sequence[Member]) -> dict[str, Any]:
        widths = [self._target_spaces[m.module]["weight"].shape[m.dim] for m in members]
        return step_limits(coupled, [self.layers[m.module] for m in members], widths)

    def _request(self, coupled: CoupledSet, metrics: Metrics | None, voter: str) -> Request:
        """Gather what the layers of a set ask; where they differ the more careful one wins."""
        members = [m for m in coupled.members if m.module == voter] or list(coupled.members)
        scores = np.zeros(coupled.size)
        if metrics is not None:
            scores = self._channel_scores(coupled, metrics, voter)
        # Ratios live in NNI's target space, where its scheduling pruners move them.
        asked = [self._target_spaces[m.module]["weight"] for m in members]
        settings = [self.layers[m.module] for m in members]
        ratios = [a.sparse_ratio for a in asked if a.sparse_ratio is not None]
        thresholds = [a.sparse_threshold for a in asked if a.sparse_threshold is not None]
        steps = removal_steps(scores, **self._limits(coupled, members))
        return Request(
            scores=scores,
            steps=steps,
            ratio=min(ratios) * self.share if ratios else None,
            threshold=min(thresholds) * self.share if thresholds and not ratios else None,
            low=max(a.min_sparse_ratio or 0.0 for a in asked) * self.share,
            high=min(1.0 if a.max_sparse_ratio is None else a.max_sparse_ratio for a in asked),
            group=next(
                (s.global_group_id for s in settings if s.global_group_id is not None), None
            ),
            unit=self.score_unit,
        )

    def _channel_scores(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> np.ndarray:
        speaker = next((m for m in coupled.members if m.module == voter), coupled.members[0])
        scores = np.full(coupled.size, np.nan)
        scores[speaker.units] = metrics[speaker.module]["weight"].numpy()[speaker.rows]
        return scores

    def _unscored(self) -> list[Request]:
        """Requests before anything is scored; the number of steps is right, their order not."""
        return [self._request(s, None, s.members[0].module) for s in self.sets]

    def _masks(self, removed: np.ndarray) -> Masks:
        """Masks for every wrapped target: what acts on a removed channel is zero."""
        masks: Masks = {}
        silent = self.coupling.masks(removed)
        for module, targets in self._target_spaces.items():
            for target, space in targets.items():
                if isinstance(space.target, Tensor):
                    mask = silent.get(module, {}).get(target)
                    whole = torch.ones_like(space.target)
                    masks.setdefault(module, {})[target] = whole if mask is None else mask
        return masks

    def requests(self) -> list[Request]:
        """Score the channels of each of :attr:`sets` by the weights as they are; mask nothing.

        Returns
        -------
        list of Request
            What is asked of each set, with its channels in the order they would go.
        """
        metrics = self._calculate_metrics(self._collect_data())
        return [self._request(s, metrics, "") for s in self.sets]

    def get_masks(self) -> Masks:
        """Return the masks, together with those given."""
        masks: Masks = super().get_masks()
        return joined_masks(self._given, masks) if self._given else masks

    def table(self) -> Table:
        """Show each set: its layers, how many channels stay, and why a layer was not pruned."""
        masks = self.get_masks()
        table = Table("layers", "channels", "kept", "note", title=type(self).__name__)
        for coupled in self.sets:
            member = coupled.members[0]
            mask = masks[member.module]["weight"]
            kept = coupled.size
            if mask is not None:
                alive = mask.movedim(member.dim, 0).flatten(1).any(1).cpu().numpy()[member.rows]
                kept = len(np.unique(member.units[alive]))
            names = listed(list(dict.fromkeys(m.module for m in coupled.members)))
            table.add_row(names, str(coupled.size), str(kept), "")
        for name, reason in self.skipped.items():
            table.add_row(name, "", "all", reason)
        return table
