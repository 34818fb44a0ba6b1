"""GConv: dense convolutions become group convolutions by permuting their channels.

Paper: Zhao, Luk, "Efficient Structured Pruning and Architecture Searching for Group Convolution",
2019, https://arxiv.org/abs/1811.09341.

The kernel scores of a layer form a matrix ``S[f, c]``, by default the L2 norms of its kernels.
Filters and input channels are split in G groups each, F/G filters and C/G channels a group, such
that the score inside the groups is as large as can be::

    maximise  sum over f, c of S[f, c] * [group of f = group of c]

and what lies outside is masked. Unlike the paper's code the partition is found by exact balanced
assignment (:mod:`nni_gconv.groupconv.partition`), and layers that meet in the same channels can
share how they split them, so that most permutations cost nothing in the converted network.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from pydantic import Field
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.graph import Coupling
from nni_gconv.groupconv.partition import Partition, l2, nested_counts
from nni_gconv.groupconv.search import group_requests, kernel_scores
from nni_gconv.pruning.group_pruner import GroupPruner
from nni_gconv.pruning.group_sides import LiveLayers, Sharing
from nni_gconv.pruning.l1_penalty import shrink_outside_
from nni_gconv.pruning.methods.gconv.by_error import by_error, live_covariances, output_errors
from nni_gconv.pruning.methods.gconv.criterion import Criterion, static_criterion
from nni_gconv.pruning.methods.gconv.group_counts import (
    asked_counts,
    fitting_counts,
    slower_layers,
)
from nni_gconv.pruning.methods.gconv.splitting import split_by_error, split_dense, split_further
from nni_gconv.pruning.options import PrunerOptions
from nni_gconv.pruning.pruner import Masks, read_options, unwrapped_input
from nni_gconv.pruning.selection.earlier_masks import earlier_masks
from nni_gconv.training import from_main_process


class GroupConvPruner(GroupPruner):
    """Mask convolutions so that each becomes a group convolution.

    How many groups a layer gets is said by ``num_groups`` or ``max_group_size`` in the
    config_list, by a group configuration, or found by :func:`nni_gconv.search_groups` inside a
    budget. Convolutions that have groups already can get a multiple of them: each of their groups
    is split by itself, as many ways.

    With an `evaluator` the masks hold through training: after every optimizer step masked weights
    and what the optimizer remembers of them are zero. With ``shaping`` the training comes before
    the masks and moves weight into the groups.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    config_list : list of dict
        NNI's config_list to select layers, with ``num_groups`` or ``max_group_size`` (most
        channels a group, on the layer's wider side). Layers that cannot be grouped stay dense and
        are listed in :attr:`skipped` with the reason.
    evaluator : Evaluator, optional
        NNI's evaluator, for training with masks, shaping and the Taylor criterion.
    existed_wrappers : dict, optional
        Set by ``from_compressor``.
    dummy_input : Tensor, tuple or dict, optional
        Example arguments of the forward. Without one, common image sizes are tried.
    budget : dict, optional
        ``{"params": 0.5, "macs": 0.5}``, fractions of the dense model or counts: the group counts
        that keep the most score inside it, among those within 1 % of it where there are any.
    group_config : mapping, str or Path, optional
        Layer -> G, or a JSON file of it (see :mod:`nni_gconv.groupconv.config`).
    criterion : {"l2", "l1", "taylor", "error"} or mapping of str to array (F, C), default "l2"
        Score of a kernel: a norm; the first-order change of the loss, ``|dL/dW * W|`` summed over
        the kernel and over the steps of the first epoch (needs an evaluator; a budget's group
        counts are searched by the L2 norm before); or scores of your own for each layer.
        ``"error"`` needs `calibration` and scores no kernel alone: layers are split such that the
        least of their output is lost once their weights are refitted
        (:mod:`nni_gconv.groupconv.output_error`), and a budget is searched by that too. It is for
        ``sharing="none"`` and method ``"assignment"``, and makes sense with `reconstruct`.
    method : {"assignment", "grps", "sort", "same", "shuffle", "random"}, default "assignment"
        How channels are split: see :func:`nni_gconv.partition`. ``"shuffle"`` (the fixed shuffle
        of ShuffleNet) and ``"random"`` look at no weight; they are there for comparison.
    num_sort_iters : int, default 10
        N_S of ``"grps"``.
    restarts : int, default 8
        Annealing chains of ``"assignment"``; 0 finds nearly as much in a fraction of the time.
    sharing : {"blocks", "streams", "none"}, optional
        Default "blocks"; "none" with criterion ``"error"``.
        Which layers split the channels they meet in alike (of equal G, for ``"assignment"``).
        ``"none"``: none; each layer keeps the most score, and a gather may be left in front of it
        and behind it. ``"streams"``: those that write the same channels, such as a residual
        stream; at most one gather a layer, in front. ``"blocks"``: also up to three layers in a
        row, each of which reads what the one before alone writes: one gather a bottleneck.
    shaping : float, default 0.0
        With an evaluator: group lasso on the kernels outside the groups while it trains. 1 takes
        from each of them, over the whole training, as much norm as kernels of the layer have on
        average when it begins; 0 masks at once.
    schedule : str or dict, default "one-shot"
        With an evaluator: when masks are made, see :mod:`nni_gconv.pruning.schedule`. On a ramp
        each layer has fewer groups first, divisors of its G, and with ``"taylor"`` the scores
        are those of the steps since the last masks. ``"one-shot"``: before the training. Not
        together with `shaping`, which has a course of its own.
    gate : {"measured"}, optional
        Leave layers dense whose grouped form is measured to be slower on this machine, with the
        batch of `dummy_input`; :attr:`skipped` says so.
    masks : dict, optional
        Masks that hold already, of a channel pruner for example. Channels they silence are left
        out, G has to divide what remains (of groups that a layer has, as much of each), and the
        masks returned are both together. ``from_compressor`` takes them from there.
    seed : int, default 0
        Of the search for partitions and of ``"random"``.

    Attributes
    ----------
    groups : dict of str to int
        Number of groups of each layer that is grouped.
    partitions : dict of str to Partition
        How each was split, of the channels that masks given leave.
    skipped : dict of str to str
        Layers that were selected and stay dense, each with the reason.

    Raises
    ------
    ConfigError
        The config_list or an argument is wrong, or a group count does not divide its layer.
    BudgetError
        The budget cannot be reached.

    Examples
    --------
    >>> import torch
    >>> from nni_gconv import GroupConvPruner, ModelSpeedup
    >>> net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1))
    >>> config_list = [{"op_names": ["0", "2"], "num_groups": 4}]
    >>> pruner = GroupConvPruner(net, config_list, dummy_input=torch.zeros(1, 8, 8, 8))
    >>> _, masks = pruner.compress()
    >>> pruner.unwrap_model()
    >>> speedup = ModelSpeedup(net, torch.zeros(1, 8, 8, 8), masks)
    >>> small = speedup.speedup_model()
    >>> small[2].groups, speedup.report().gathers  # one, in front of the first
    (4, 1)
    """

    class Options(PrunerOptions):
        """Options of :class:`GroupConvPruner`."""

        group_config: Any = Field(None, description="Layer -> G, or a JSON file of it.")
        criterion: Criterion = Field(
            "l2",
            description="Score of a kernel: l2, l1 or taylor; error: what of a layer's output is "
            "lost after a refit, on calibration images.",
        )
        method: Literal["assignment", "grps", "same", "sort", "shuffle", "random"] = Field(
            "assignment", description="How channels are split."
        )
        num_sort_iters: int = Field(10, ge=0, description="N_S of grps.")
        restarts: int = Field(8, ge=0, description="Annealing chains of assignment.")
        sharing: Sharing | None = Field(
            None,
            description="Which layers split the channels they meet in alike: blocks (the "
            "default), streams, none (the default with criterion error).",
        )
        shaping: float = Field(
            0.0, ge=0, description="Group lasso outside the groups while it trains."
        )
        gate: Literal["measured"] | None = Field(
            None, description="Leave layers dense whose grouped form is measured to be slower."
        )
        seed: int = Field(0, ge=0, description="Of the search for partitions and of random.")

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
        purpose = _needs_training(given)
        if given.shaping > 0 and given.schedule.name != "one-shot":
            raise ConfigError("shaping and schedule exclude each other: masks follow the shaping")
        self.dummy_input = unwrapped_input(
            model, evaluator, given, remedy="unwrap it and pass masks="
        )
        if purpose and evaluator is None:
            raise ConfigError(
                f"{purpose}: needs an evaluator= to train with (in a recipe: a sparsify section)"
            )
        requests, skipped = group_requests(model, config_list, further=True)
        self._given = dict(given.masks or earlier_masks(existed_wrappers))
        graph = given.traced.graph if given.traced else None
        live = LiveLayers(
            model,
            Coupling.trace(model, self.dummy_input, graph=graph),
            list(requests),
            self._given,
        )
        self._sharing: Sharing = given.sharing or ("none" if by_error(given) else "blocks")
        covariances = live_covariances(model, live.layers, given, self._sharing)
        asked, unasked = asked_counts(
            model, self.dummy_input, config_list, live.layers, requests, given, self._given,
            covariances,
        )  # fmt: skip
        groups, unfit = fitting_counts(live.layers, asked)
        skipped = {**skipped, **unasked, **unfit}
        if given.gate is not None:
            sides = live.shared(groups, self._sharing)
            slow = slower_layers(model, self.dummy_input, groups, sides, self._sharing)
            skipped.update(slow)
            groups = {name: g for name, g in groups.items() if name not in slow}
        if not isinstance(given.criterion, str):
            for name in groups:
                kernel_scores(name, model.get_submodule(name).weight, given.criterion)
        super().__init__(model, live.layers, groups, skipped, evaluator, existed_wrappers, given)
        self._sides = live.shared(self.groups, self._sharing)
        self._errors = output_errors(model, live.layers, self.groups, covariances)
        self._sums: dict[str, Tensor] = {}
        self._threshold: dict[str, float] = {}

    # -- scores and partitions --------------------------------------------------------------------

    def _score(self, name: str) -> np.ndarray:
        """Kernel scores of the filters and channels that masks given leave."""
        static = static_criterion(self.options.criterion)
        criterion = self._sums if name in self._sums else static
        return self._live[name].left(kernel_scores(name, self._weight(name), criterion))

    def _split(self, restarts: int | None = None) -> dict[str, Partition]:
        """Partition every layer, in every process as the main one does."""
        return dict(from_main_process(self._split_here(restarts)))

    def _split_here(self, restarts: int | None) -> dict[str, Partition]:
        """Partition every layer, those of one number of groups together."""
        had = {name: self._live[name].had for name in self.groups}
        every = {
            name: self._so_far(name, nested_counts(goal // had[name]))
            for name, goal in self.groups.items()
        }
        scores = {name: self._score(name) for name in every}
        if self._errors:
            return {
                name: split_by_error(scores[name], self._errors[name], count, self.options)
                for name, count in every.items()
            }
        split = {
            name: split_further(scores[name], had[name], count, self.options, index)
            for index, (name, count) in enumerate(every.items())
            if had[name] > 1
        }
        dense = {name: count for name, count in every.items() if had[name] == 1}
        split.update(split_dense(scores, dense, self._sides, self.options, restarts))
        return {name: split[name] for name in every}

    # -- NNI's hooks ------------------------------------------------------------------------------

    def generate_masks(self) -> Masks:
        """Split the channels and write the masks."""
        self.partitions = self._split()
        if self.scheduled:
            self._sums = {}
        return self._masks()

    # -- training ---------------------------------------------------------------------------------

    @property
    def needs_epochs(self) -> bool:
        """Shaping, Taylor scores and schedules are in epochs."""
        return super().needs_epochs or bool(_needs_training(self.options))

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if self.needs_epochs and max_epochs is None:
            purpose = _needs_training(self.options) or "schedule"
            raise ConfigError(f"{purpose}: needs compress(max_epochs=...) to train")
        super()._single_compress(max_steps, max_epochs)

    def _shaping_epochs(self) -> int:
        """Epochs before the masks are made."""
        if self.scheduled:
            return 0
        if self.options.shaping > 0:
            return self.clock.epochs or 0
        return 1 if self.options.criterion == "taylor" else 0

    def begin_training(self) -> None:
        """Mask at once, unless training has to come first or a schedule says when."""
        super().begin_training()
        if not self.needs_epochs:
            self.renew_masks()
        if self.options.shaping > 0:
            for name in self.groups:
                mean = float(l2(self._weight(name)).mean())
                self._threshold[name] = self.options.shaping * mean / max(self.clock.steps or 1, 1)
            if self.options.criterion != "taylor":
                self.partitions = self._split(restarts=0)

    def before_step(self) -> None:
        """Gather Taylor scores."""
        gathering = self.scheduled or self.clock.epoch < self._shaping_epochs()
        if self.options.criterion != "taylor" or not gathering:
            return
        for name in self.groups:
            weight = self._weight(name)
            if weight.grad is not None:
                change = (weight.detach() * weight.grad).flatten(2).sum(2).abs().double()
                self._sums[name] = self._sums.get(name, 0) + change

    def after_step(self) -> None:
        """Keep masked weights at zero, or shrink what lies outside the groups."""
        super().after_step()
        if self.clock.epoch < self._shaping_epochs():
            if self.partitions:
                self._shrink()
            return
        self.clear_masked()

    @torch.no_grad()
    def _shrink(self) -> None:
        """Soft-threshold the norm of every kernel outside the groups."""
        for name in self.groups:
            weight = self._weight(name)
            inside = self._live[name].mask(self.partitions[name]).bool()
            shrink_outside_(weight, inside.to(weight.device), self._threshold[name])

    def after_epoch(self, epoch: int) -> None:
        """Split anew while the weights are being shaped; mask when that is over."""
        super().after_epoch(epoch)
        if epoch + 1 == self._shaping_epochs():
            self.renew_masks()
        elif epoch + 1 < self._shaping_epochs():
            self.partitions = self._split(restarts=0)

    def finish_training(self) -> None:
        """Masks are made by now, unless a schedule has not come to its end."""
        if self.scheduled:
            super().finish_training()

    def state_dict(self) -> dict[str, Any]:
        """Return partitions, thresholds and gathered scores beside what the base keeps."""
        split = {
            name: [p.row_groups.tolist(), p.col_groups.tolist(), p.retained, p.bound, p.total]
            for name, p in self.partitions.items()
        }
        return {
            **super().state_dict(),
            "partitions": split,
            "threshold": dict(self._threshold),
            "sums": dict(self._sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.partitions = {name: Partition(*p) for name, p in state["partitions"].items()}
        self._threshold = dict(state["threshold"])
        self._sums = dict(state["sums"])


def _needs_training(options: GroupConvPruner.Options) -> str:
    """Name the option that needs epochs of training; "" for none."""
    if options.shaping > 0:
        return "shaping"
    return "criterion: taylor" if options.criterion == "taylor" else ""
