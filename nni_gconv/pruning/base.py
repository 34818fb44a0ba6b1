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
from nni.compression.base.compressor import Pruner
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from rich.table import Table
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.allocation import Request, removal_steps, take
from nni_gconv.pruning.budget import check_reachable, fit
from nni_gconv.pruning.config_list import LayerConfig, nni_entries, resolve
from nni_gconv.pruning.cost import CostModel, parse_budget
from nni_gconv.speedup.coupling import CoupledSet, Coupling
from nni_gconv.speedup.trace import example_input

__all__ = ["ChannelPruner", "Rule"]

_logger = logging.getLogger(__name__)

Rule = Literal["mean", "max", "union"]
Masks = dict[str, dict[str, Tensor]]
_RULES = ("mean", "max", "union")


class ChannelPruner(Pruner):
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
        ``params`` or ``latency`` (a fraction), in place of ratios. Needs `dummy_input`.
    coupling : {"mean", "max", "union"}, default "mean"
        How layers that share channels agree: by the mean or the largest of their scores, each
        relative to its layer's mean; or by union, where a channel goes only if every layer would
        remove it (fewer go than asked).

    Raises
    ------
    ConfigError
        The config_list or an argument is wrong.
    BudgetError
        The budget cannot be reached with the layers selected.
    """

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
    ) -> None:
        if coupling not in _RULES:
            raise ConfigError(
                f"coupling: {coupling!r} is not allowed (allowed: {', '.join(_RULES)})"
            )
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
        self.coupling = Coupling.trace(model, self.dummy_input, tie=_ties(self.layers))
        self.cost = CostModel(model, self.dummy_input, self.coupling)
        self.skipped = self._find_skipped()
        self.sets = [s for i, s in enumerate(self.coupling.sets) if i not in self._skipped_sets]
        if not self.sets:
            raise ConfigError(f"config_list: nothing can be pruned: {_first(self.skipped)}")
        for line in self._skip_lines():
            _logger.warning(line)
        # LinearPruner and AGPPruner of NNI overwrite these to drive any pruner that has them.
        self.interval_steps, self.total_times = -1, 1
        entries = [*nni_entries(self.layers), *self._follower_entries(model)]
        compat.register_pruning_types(model, [e["op_names"][0] for e in entries])
        super().__init__(model, entries, evaluator, existed_wrappers)
        if self.budget is not None:
            # Said now and not after hours of training: what can go does not depend on scores.
            check_reachable(self.budget, self.cost, self.sets, self._unscored())

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

    def _validate_config(self) -> None:
        """Nothing left to check: :func:`resolve` has read the list strictly."""

    def _check_budget_alone(self) -> None:
        for name, layer in self.layers.items():
            given = layer.sparse_ratio is not None or layer.sparse_threshold is not None
            if self.budget is not None and given:
                raise ConfigError(f"budget: {name} has a sparse_ratio too; give one or the other")
            if self.budget is None and not given:
                raise ConfigError(f"config_list: {name} has no sparse_ratio and there is no budget")

    def _find_skipped(self) -> dict[str, str]:
        """Say for every selected layer that keeps channels why it does."""
        skipped: dict[str, str] = {}
        self._skipped_sets: set[int] = set()
        for index, coupled in enumerate(self.coupling.sets):
            names = [m.module for m in coupled.members]
            outside = [n for n in names if n not in self.layers]
            reason = coupled.reason
            if reason is None and outside:
                how = "excludes" if outside[0] in self._excluded else "does not select"
                reason = f"its channels are coupled to {outside[0]}, which the config_list {how}"
            if reason is not None:
                self._skipped_sets.add(index)
                for name in names:
                    if name in self.layers:
                        skipped.setdefault(name, reason)
        return skipped

    def _skip_lines(self) -> list[str]:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        return [f"not pruned: {_listed(names)}: {reason}" for reason, names in by_reason.items()]

    def _follower_entries(self, model: nn.Module) -> list[dict[str, Any]]:
        """Entries for norms and unselected layers whose biases a pruned channel runs through."""
        going = self.coupling.empty()
        for coupled in self.sets:
            going[coupled.classes] = True
        modules = dict(model.named_modules(remove_duplicate=False))
        names: dict[str, None] = {}
        for axis in self.coupling.channels.axes.values():
            module = axis.tensor.rpartition(".")[0]
            touched = going[self.coupling.channels.of(axis.labels)].any()
            if (
                touched
                and axis.role in ("bias", "scale")
                and compat.has_scale_and_shift(modules[module])
            ):
                names.setdefault(module)
        return [
            {"op_names": [name], "target_names": ["weight", "bias"]}
            for name in names
            if name not in self.layers
        ]

    # -- NNI's hooks ------------------------------------------------------------------------------

    def _collect_data(self) -> dict[str, dict[str, Tensor]]:
        """Weights as they are, without masks: a soft method can change its mind."""
        data: dict[str, dict[str, Tensor]] = {}
        for coupled in self.sets:
            for member in coupled.members:
                target = self._target_spaces[member.module]["weight"].target
                data[member.module] = {"weight": target.detach()}
        return data

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Score every filter; filters that are one channel share a score (not under union)."""
        metrics: dict[str, dict[str, Tensor]] = {}
        for coupled in self.sets:
            matrices = [
                _unit_matrix(data[m.module]["weight"], m.dim, m.rows, m.units, coupled.size)
                for m in coupled.members
            ]
            shared = None if self.rule == "union" else self.rank(matrices)
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
            removed = fit(self.budget, self.cost, self.sets, requests)
        else:
            for coupled, gone in zip(self.sets, self._by_ratio(metrics), strict=True):
                removed[coupled.classes[gone]] = True
        return self._masks(removed)

    def _by_ratio(self, metrics: Mapping[str, Mapping[str, Tensor]]) -> list[np.ndarray]:
        """Channels of each set that its layers' ratios remove."""
        votes: list[tuple[int, Request]] = []
        for index, coupled in enumerate(self.sets):
            voters = [m.module for m in coupled.members] if self.rule == "union" else [""]
            votes += [(index, self._request(coupled, metrics, voter)) for voter in voters]
        outcome: list[np.ndarray | None] = [None] * len(self.sets)
        for (index, request), steps in zip(votes, take([r for _, r in votes]), strict=True):
            gone = np.zeros(request.size, dtype=bool)
            gone[_taken(request, steps)] = True
            before = outcome[index]
            outcome[index] = gone if before is None else before & gone
        found = [np.flatnonzero(o) for o in outcome if o is not None]
        return [_balanced(s, gone) for s, gone in zip(self.sets, found, strict=True)]

    def _request(
        self, coupled: CoupledSet, metrics: Mapping[str, Mapping[str, Tensor]], voter: str
    ) -> Request:
        """Gather what the layers of a set ask; where they differ the more careful one wins."""
        members = [m for m in coupled.members if not voter or m.module == voter]
        speaker = members[0]
        scores = np.full(coupled.size, np.nan)
        scores[speaker.units] = metrics[speaker.module]["weight"].numpy()[speaker.rows]
        asked = [self._asked(m.module) for m in members]
        settings = [self.layers[m.module] for m in members]
        ratios = [a.sparse_ratio for a in asked if a.sparse_ratio is not None]
        thresholds = [a.sparse_threshold for a in asked if a.sparse_threshold is not None]
        sizes = [self._target_spaces[m.module]["weight"].shape[m.dim] for m in members]
        steps = removal_steps(
            scores,
            blocks=_joined_blocks(coupled, settings),
            # A set may be a part of a layer: it keeps its share of the layer's least width.
            min_channels=max(
                -(-s.min_channels * coupled.size // size)
                for s, size in zip(settings, sizes, strict=True)
            ),
            round_to=int(np.lcm.reduce([s.round_to for s in settings])),
        )
        return Request(
            scores=scores,
            steps=steps,
            ratio=min(ratios) if ratios else None,
            threshold=min(thresholds) if thresholds and not ratios else None,
            low=max(a.min_sparse_ratio or 0.0 for a in asked),
            high=min(1.0 if a.max_sparse_ratio is None else a.max_sparse_ratio for a in asked),
            group=next(
                (s.global_group_id for s in settings if s.global_group_id is not None), None
            ),
        )

    def _asked(self, module: str) -> Any:
        """Ratios live in NNI's target space, where its scheduling pruners move them."""
        return self._target_spaces[module]["weight"]

    def _unscored(self) -> list[Request]:
        """Requests before anything is scored; the number of steps is right, their order not."""
        sizes = {
            m.module: {"weight": torch.zeros(self._target_spaces[m.module]["weight"].shape[m.dim])}
            for coupled in self.sets
            for m in coupled.members
        }
        return [self._request(s, sizes, s.members[0].module) for s in self.sets]

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

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if max_steps is None and max_epochs is None:
            self.update_masks(self.generate_masks())
        else:
            self._fusion_compress(max_steps, max_epochs)

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        """Renew the masks every ``interval_steps`` optimizer steps, ``total_times`` times."""
        step, left = 0, self.total_times

        def after_step() -> None:
            nonlocal step, left
            step += 1
            if step == self.interval_steps and left > 0:
                self.update_masks(self.generate_masks())
                step, left = 0, left - 1

        evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[after_step])

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        if self.interval_steps < 0:
            self.update_masks(self.generate_masks())

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, Masks]:
        """Make the masks.

        Parameters
        ----------
        max_steps, max_epochs : int, optional
            Train so long with the evaluator; without either the masks are made at once.

        Returns
        -------
        model : nn.Module
            The wrapped, masked model.
        masks : dict of str to dict of str to Tensor
            ``{module: {target: 0/1 tensor}}``.
        """
        if (max_steps is not None or max_epochs is not None) and self.evaluator is None:
            raise ConfigError("compress: max_steps and max_epochs need an evaluator=")
        return super().compress(max_steps, max_epochs)

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
            names = _listed(list(dict.fromkeys(m.module for m in coupled.members)))
            table.add_row(names, str(coupled.size), str(kept), "")
        for name, reason in self.skipped.items():
            table.add_row(name, "", "all", reason)
        return table


def _unit_matrix(
    weight: Tensor, dim: int, rows: np.ndarray, units: np.ndarray, size: int
) -> Tensor:
    """Filters of a layer as one row per channel; several filters of a channel stand in one row."""
    flat = weight.movedim(dim, 0).flatten(1)
    order = np.argsort(units, kind="stable")
    gathered = flat[torch.from_numpy(rows[order]).to(flat.device)]
    if len(rows) % size:
        raise ConfigError("layers that make a channel with unequal numbers of filters")
    return gathered.reshape(size, -1)


def _taken(request: Request, steps: int) -> np.ndarray:
    gone = request.steps[:steps]
    return np.concatenate(gone) if gone else np.zeros(0, dtype=np.int64)


def _balanced(coupled: CoupledSet, gone: np.ndarray) -> np.ndarray:
    """After a vote, give back what would leave some groups wider than others."""
    if coupled.blocks is None or not len(gone):
        return gone
    fewest = int(np.bincount(coupled.blocks[gone], minlength=int(coupled.blocks.max()) + 1).min())
    per_block = [gone[coupled.blocks[gone] == b][:fewest] for b in np.unique(coupled.blocks)]
    return np.concatenate(per_block)


def _joined_blocks(coupled: CoupledSet, settings: Sequence[LayerConfig]) -> np.ndarray | None:
    """Blocks of the graph's groups together with those of ``internal_metric_block``."""
    blocks = coupled.blocks
    for layer in settings:
        asked = layer.internal_metric_block
        if asked is None or asked == 1:
            continue
        if coupled.size % asked:
            raise ConfigError(
                f"internal_metric_block: {asked} does not divide the {coupled.size} channels of "
                f"{coupled.name}"
            )
        own = np.arange(coupled.size) // (coupled.size // asked)
        if blocks is not None:
            own = np.unique(np.stack([blocks, own]), axis=1, return_inverse=True)[1].reshape(-1)
        if len(set(np.bincount(own).tolist())) != 1:
            raise ConfigError(
                f"internal_metric_block: {asked} blocks cut across the groups of {coupled.name}"
            )
        blocks = own
    return blocks


def _ties(layers: Mapping[str, LayerConfig]) -> list[tuple[str, str]]:
    """Pairs of layers that the user wants to lose the same channels."""
    first: dict[Any, str] = {}
    ties = []
    for name, layer in layers.items():
        if layer.dependency_group_id is not None:
            leader = first.setdefault(layer.dependency_group_id, name)
            ties += [(f"{leader}.weight", f"{name}.weight")] if leader != name else []
        if layer.align is not None:
            ties.append((f"{layer.align}.weight", f"{name}.weight"))
    return ties


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first(skipped: Mapping[str, str]) -> str:
    name, reason = next(iter(skipped.items()), ("the model", "no layer was selected"))
    return f"{name}: {reason}"
