"""Masks in, a smaller and equal model out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv import compat
from nni_gconv.errors import ConfigError, OptionError, SpeedupError, check_layers, unknown_name
from nni_gconv.graph import Graph, Masks, load_masks, read_masks, trace, width_written_at
from nni_gconv.profiling import check_met, count, parse_budget
from nni_gconv.speedup.cut import Replaced, apply_plan
from nni_gconv.speedup.literal_widths import MOST_WIDTHS, written_width
from nni_gconv.speedup.optimizer import leave_behind, rebind
from nni_gconv.speedup.plan import Constants, Cut, Plan, plan_cut
from nni_gconv.speedup.precise import PreciseModel, mask_parameters
from nni_gconv.speedup.report import SpeedupReport, layer_changes, speedup_notes, weight_shapes
from nni_gconv.speedup.residual import Thinned, without_dead_blocks
from nni_gconv.speedup.verify import Verified, check_dummy, check_finite, verify_equal

#: Arguments of NNI's class that are not needed here, and those that take its own machinery.
_UNNEEDED = (
    "batch_dim",
    "batch_size",
    "confidence",
    "graph_module",
    "garbage_collect_values",
    "logger",
)
_MORE = "the forward needs more than its width of {}"
_CUSTOMIZED = ("customized_mask_updaters", "customized_replacers")


class ModelSpeedup:
    """Turn a masked model into a small one that gives the same outputs.

    Everything is read from the masks: channels whose filters, or all whose readers, are masked are
    removed together with what is coupled to them; what cannot go because of a sum, a group or a
    literal width in the forward stays as zeros. A residual block whose branch is masked altogether
    is exchanged for what lies beside the branch. The model's class and forward are kept; its layers
    stay plain torch modules with smaller tensors. The model given is changed in place, as NNI's
    class of this name does, but only after a copy has passed verification.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model (``pruner.unwrap_model()`` first).
    dummy_input : Tensor, tuple or dict
        Example arguments of the forward, on the model's device.
    masks_or_file : dict, str or Path
        ``{module: {target: 0/1 tensor}}`` as ``pruner.compress()`` returns, or a file of it.
    fold_permutations : bool, default True
        Fold the channel permutations that block-diagonal masks need into neighbouring weights.
    verify : bool, default True
        Compare masked and small model in float64 before the model is touched.
    constants : {"both", "silence", "fold"}, default "both"
        Masks that zero a filter but not the batch norm behind it, or a norm's scale but not its
        shift, leave a constant. ``"silence"`` masks the norm too where all filters of a channel
        are masked (the outputs change by what the constant was worth; reported). ``"fold"`` adds
        the constant to the biases of its readers wherever that is exact and keeps the channel
        where it is not: outputs are those of the masks as they were given. ``"both"`` silences,
        and folds what stays then.
    seed : int, default 0
        Seed of the random inputs of the verification.
    graph : Graph, optional
        The model as it has been traced already, its structure unchanged since.
    budget : dict, optional
        ``{"macs": 0.5}``, as the pruner was given it: what the small model has to keep within. A
        latency is not measured here.
    map_location, batch_dim, batch_size, graph_module, garbage_collect_values, logger
        Of NNI's class; not needed here, and taken so that a call of it works as it is.
        ``masks_file`` is ``masks_or_file`` of NNI 2.

    Raises
    ------
    OptionError
        An argument that neither this class nor NNI's has, or that cannot act here.
    TraceError, CheckpointError, SpeedupError
        From :meth:`speedup_model`; each names the line or the layer.
    BudgetError
        From :meth:`speedup_model`: the small model costs more than `budget`. The model is left as
        it was.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> mask = torch.ones(8, 3, 3, 3)
    >>> mask[2:5] = 0
    >>> bias = torch.ones(8)
    >>> bias[2:5] = 0
    >>> masks = {"0": {"weight": mask, "bias": bias}}
    >>> small = ModelSpeedup(net, torch.zeros(1, 3, 8, 8), masks).speedup_model()
    >>> small[0].out_channels, small[2].in_channels
    (5, 5)
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        masks_or_file: Masks | str | Path | None = None,
        map_location: Any = None,
        *,
        fold_permutations: bool = True,
        verify: bool = True,
        constants: Constants = "both",
        seed: int = 0,
        graph: Graph | None = None,
        budget: Mapping[str, float] | None = None,
        **nni: Any,
    ) -> None:
        masks_or_file = _nni_arguments(masks_or_file, nni)
        if constants not in get_args(Constants):
            allowed = ", ".join(sorted(get_args(Constants)))
            raise ConfigError(f"constants: {constants!r} is not allowed (allowed: {allowed})")
        check_layers(model)
        check_dummy(dummy_input)
        if compat.is_wrapped(model):
            raise SpeedupError("the model is still wrapped by a pruner: call pruner.unwrap_model()")
        self.model = model
        self.dummy_input = dummy_input
        self.fold_permutations = fold_permutations
        self.verify = verify
        self.constants = constants
        self.seed = seed
        self._graph = graph
        self._budget = {} if budget is None else parse_budget(budget)
        self._masks = (
            load_masks(masks_or_file) if isinstance(masks_or_file, str | Path) else masks_or_file
        )
        self._report: SpeedupReport | None = None
        self._masked: tuple[dict[str, Tensor], Mapping[str, tuple[str, ...]]] | None = None
        self.plan: Plan | None = None
        self._replaced: list[Replaced] = []
        self._before: list[Tensor] = []

    def speedup_model(self) -> nn.Module:
        """Make the model small, in place, and return it."""
        # Of a model that nothing has run yet: what a trace were to leave behind would be seen.
        pristine = PreciseModel(self.model) if self.verify else None
        dense = trace(self.model, self.dummy_input) if self._graph is None else self._graph
        masks = read_masks(self.model, self._masks, dense.aliases)
        thinned = without_dead_blocks(
            self.model, self.dummy_input, dense, masks, followers_too=self.constants != "fold"
        )
        cut, small, ready = self._cut_that_runs(thinned)
        seen = None
        if pristine is not None:
            try:
                seen = self._verified(pristine, dense, thinned, cut, small)
            except SpeedupError:
                if not cut.plan.attributes:
                    raise
                # The forward reckons with what only looked like a width.
                pins = {use.node: _MORE.format(use.total) for use in cut.channels.sizes}
                cut, small, ready = self._cut_that_runs(thinned, pins)
                pristine = PreciseModel(self.model)
                seen = self._verified(pristine, dense, thinned, cut, small)
        if self._budget:
            self._check_budget(small, speedup_notes(cut, thinned))
        before, self._before = weight_shapes(self.model), list(self.model.parameters())
        thinned.thin(self.model)
        self._replaced = apply_plan(self.model, thinned.graph, cut.plan, cut.kept, ready)
        leave_behind(self._before, self.model)
        self.plan = cut.plan
        self._masked = {**thinned.gone, **cut.kept}, dense.aliases
        notes = (
            *thinned.notes, *speedup_notes(cut, thinned), *cut.notes, *thinned.graph.notes,
            *([seen.note] if seen is not None and seen.note else ()),
        )  # fmt: skip
        changes = layer_changes(self.model, before)
        gathers = sum(change.gathers for change in changes)
        difference = None if seen is None else seen.difference
        self._report = SpeedupReport(changes, notes, gathers, difference)
        return self.model

    def _cut_that_runs(
        self, thinned: Thinned, pins: Mapping[Node, str] | None = None
    ) -> tuple[Cut, nn.Module, list[Replaced]]:
        """Find a cut that the forward can do with, and what it makes of a copy and its tensors."""
        graph, masks = thinned.graph, thinned.masks
        pins = dict(pins or {})
        for _ in range(MOST_WIDTHS):
            cut = plan_cut(
                graph,
                masks,
                thinned.wiring,
                pins,
                constants=self.constants,
                fold_permutations=self.fold_permutations,
            )
            small = thinned.copy_of(self.model)
            ready = apply_plan(small, graph, cut.plan, cut.kept)
            met = written_width(
                small, self.dummy_input, graph, cut.channels, cut.decision.removed, pins
            )
            if met is None:
                return cut, small, ready
            pins[met] = width_written_at(met)
        raise SpeedupError("the forward holds too many literal widths to work around")

    def _check_budget(self, small: nn.Module, notes: Sequence[str]) -> None:
        after, before = (count(m, self.dummy_input)._asdict() for m in (small, self.model))
        check_met(self._budget, after, before, notes)

    def _verified(
        self, pristine: PreciseModel, dense: Graph, thinned: Thinned, cut: Cut, small: nn.Module
    ) -> Verified:
        """Compare masked and small model, both in float64."""
        check_finite(small, self.dummy_input, seed=self.seed)
        # Cut anew in float64: constants folded into biases are rounded in the model's own.
        precise = PreciseModel(self.model, cut.plan.reckons_with(self.model))
        precise.module = thinned.copy_of(precise.module)
        apply_plan(precise.module, thinned.graph, cut.plan, cut.kept)
        pristine.mask({**thinned.gone, **cut.kept}, dense.aliases)
        return verify_equal(
            pristine,
            precise,
            self.dummy_input,
            graph=thinned.graph,
            channels=cut.channels,
            order=cut.order,
            seed=self.seed,
        )

    def mask(self, model: nn.Module) -> None:
        """Mask a copy of the model that was given, so that it computes what the small one does.

        Parameters
        ----------
        model : nn.Module
            Copied before :meth:`speedup_model`, which has to be called first.
        """
        if self._masked is None:
            raise SpeedupError("no masks yet: call speedup_model() first")
        mask_parameters(model, *self._masked)

    def report(self) -> SpeedupReport:
        """Return what was done, per layer; call :meth:`speedup_model` first."""
        if self._report is None:
            raise SpeedupError("nothing to report yet: call speedup_model() first")
        return self._report

    def rebind_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let an optimizer of the dense model go on with the small one.

        Its parameters are exchanged for the small model's, and what it remembers of them
        (momentum, Adam's averages) is cut as the parameters were; what it remembers of masked
        weights is zeroed, so that they stay zero.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Made from the parameters of the (unwrapped) model before :meth:`speedup_model`; changed
            in place. Learning rates and schedules stay.

        Returns
        -------
        torch.optim.Optimizer
            The same object.

        Raises
        ------
        SpeedupError
            The optimizer holds a parameter that the model does not have.

        Examples
        --------
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> masks = {"0": {"weight": torch.ones(8, 3, 3, 3), "bias": torch.ones(8)}}
        >>> masks["0"]["weight"][:2] = masks["0"]["bias"][:2] = 0
        >>> speedup = ModelSpeedup(net, torch.zeros(1, 3, 8, 8), masks)
        >>> _ = speedup.speedup_model()
        >>> speedup.rebind_optimizer(optimizer).param_groups[0]["params"][0].shape
        torch.Size([6, 3, 3, 3])
        """
        self.report()
        rebind(optimizer, self._replaced, self.model, self._before)
        return optimizer


def _nni_arguments(masks: Any, given: dict[str, Any]) -> Any:
    """Check keywords of NNI's class, and return the masks, which NNI 2 called otherwise."""
    ours = [name for name in inspect.signature(ModelSpeedup).parameters if name != "nni"]
    for name, value in given.items():
        if name in _CUSTOMIZED and value:
            raise OptionError(
                f"{name}: cannot act here, where rules follow torch's operators; leave it out; "
                "most models need none (nni-gconv doctor MODEL tells)"
            )
        if name not in (*_CUSTOMIZED, *_UNNEEDED, "masks_file"):
            raise OptionError(unknown_name("option", name, [*ours, "masks_file"], "ModelSpeedup"))
    if masks is not None and given.get("masks_file") is not None:
        raise OptionError("ModelSpeedup: masks_or_file and masks_file are the same; give one")
    return given.get("masks_file") if masks is None else masks
