"""One call: a network, an input and a budget in; a smaller, equal network and a report out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_gconv.display import Stages
from nni_gconv.errors import ConfigError, UnseenError
from nni_gconv.graph import trace
from nni_gconv.profiling import Counts, batch_of, compare_latency, count
from nni_gconv.pruning import (
    Calibration,
    ChannelPruner,
    PlainLoop,
    Reconstruction,
    ReconstructSettings,
    Traced,
    TrainedPruner,
    find_method,
    least_costs,
)
from nni_gconv.shrinking.known import images_known
from nni_gconv.shrinking.report import ShrinkReport
from nni_gconv.shrinking.request import (
    BY_WEIGHTS,
    Request,
    acts_in_training,
    check_asked,
    check_options,
    check_trainer,
    copied,
    example_of,
    read_request,
)
from nni_gconv.speedup import ModelSpeedup

Masks = dict[str, dict[str, Tensor]]
Train = Callable[[nn.Module], Any]
_UNTRAINED = (
    "trainer: no weight of the model it was given changed; does its optimizer hold another's?"
)


def shrink(  # noqa: PLR0913 - all that a person may want to say, each with a default
    model: nn.Module,
    x: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    groups: int | Mapping[str, int] | str | Path | Literal["search"] | None = None,
    calibration: Any = None,
    criterion: str | type[TrainedPruner] | None = None,
    keep: str | Sequence[str] = (),
    trainer: Train | None = None,
    reconstruct: bool | Mapping[str, Any] | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    verify: bool = True,
    progress: bool | None = None,
    **options: Any,
) -> tuple[nn.Module, ShrinkReport]:
    """Make a network smaller: choose channels, remove them, check that nothing else has changed.

    Parameters
    ----------
    model : nn.Module
        Any CNN. It is left as it is; a copy becomes small.
    x : Tensor, tuple, dict or shape
        Example arguments of the forward, such as one batch of images, or the shape of one:
        ``(1, 3, 224, 224)``.
    macs, params : float, optional
        What may be left: up to 1 a fraction of the dense network, above a count.
    latency : float, optional
        The fraction of the dense network's time that may be left, measured on this machine with the
        batch of `x`.
    groups : int, mapping, path or "search", optional
        Make convolutions group convolutions: of so many groups; of the groups that a mapping or a
        JSON file names; or of as many as fit the budget (``"search"``). Beside a budget, channels
        are removed afterwards until it is met.
    calibration : loader, Tensor or Calibration, optional
        Images of the training split; a thousand are enough, labels are rarely needed. With them
        channels are chosen by what the others can make up for, and the weights left are fitted to
        the dense network's outputs: far more accuracy without any training.
    criterion : str or class, optional
        A method of :doc:`criteria </docs/criteria>`, ``"slimming"``, ``"gsparsity"``, ... or a
        pruner's class. Default: ``"second_order"`` with `calibration`, ``"magnitude"`` without.
    keep : str or sequence of str, optional
        Modules (names, or patterns such as ``"*.head"``) whose layers keep all their outputs.
    trainer : callable, optional
        ``trainer(model)`` trains the model it is given, in place, with an optimizer that it makes
        itself. Methods that act during training (slimming, gsparsity, shuffle, fpgm, and all with
        ``schedule=``) run inside it; after any other it is given the small network.
    reconstruct : bool or mapping, optional
        Whether, or how, the weights that are left are fitted to the dense network's outputs.
        Default: if there are `calibration` images.
    epochs, steps_per_epoch : int, optional
        How long `trainer` trains, for methods and schedules that have to know.
    verify : bool, default True
        Compare masked and small network in float64.
    progress : bool, optional
        A line a stage on standard error; default: on a terminal and in notebooks.
    **options
        Of the criterion: ``schedule="cubic"``, ``coupling="max"``, ...

    Returns
    -------
    small : nn.Module
        The same class with smaller layers, in the mode of `model`. ``save_compact`` writes it.
    report : ShrinkReport
        What it costs, what was kept and why; ``print(report)``.

    Raises
    ------
    ConfigError
        Something that was asked cannot be, said before any work.
    BudgetError
        The budget cannot be reached; says what can, before images are looked at.
    TraceError, SpeedupError, DataError
        As from pruners and :class:`nni_gconv.ModelSpeedup`.

    Examples
    --------
    >>> import torch
    >>> from nni_gconv import shrink
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
    ...                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    >>> small, report = shrink(net, torch.randn(1, 3, 8, 8), macs=0.5)
    >>> report.macs_ratio <= 0.5, small(torch.zeros(2, 3, 8, 8)).shape
    (True, torch.Size([2, 4]))
    """
    check_trainer(trainer)
    budget = {"macs": macs, "params": params, "latency": latency}
    check_asked(budget, groups, options)
    request = read_request(model, budget, groups, criterion, keep, calibration is not None)
    if reconstruct and calibration is None:
        raise ConfigError("reconstruct: needs calibration= (images of the training split)")
    if reconstruct is None:
        reconstruct = calibration is not None
    check_options(request, options)
    settings = ReconstructSettings.parse(reconstruct)
    how = _How(options, settings, trainer, epochs, steps_per_epoch, verify)
    with _quiet():
        work = _Shrinking(model, x, request, how, Stages("shrink", progress))
        work.by_default = criterion is None
        return work.run(calibration)


@dataclass(frozen=True)
class _How:
    """What is asked beside the budget."""

    options: dict[str, Any]
    settings: ReconstructSettings | None
    trainer: Train | None
    epochs: int | None
    steps_per_epoch: int | None
    verify: bool


@dataclass
class _Shrinking:
    """One shrinking under way."""

    given: nn.Module
    x: Any
    request: Request
    how: _How
    stages: Stages
    images: Calibration | None = None
    kept: dict[str, str] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    reconstruction: Reconstruction | None = None
    by_default: bool = False
    notes: list[str] = field(default_factory=list)

    def run(self, calibration: Any) -> tuple[nn.Module, ShrinkReport]:
        """Do all stages."""
        model, stages = copied(self.given), self.stages
        x = self.x = example_of(model, self.x)
        model.eval()
        with stages.stage("trace") as stage:
            batch_of(x)
            traced = Traced(trace(model, x), count(model, x))
            stage.result = _costs_in_words(traced.counts)
        self._check(model, traced)
        if calibration is not None:
            with stages.stage("images") as stage:
                self.images = Calibration.of(calibration)
                known, odd = images_known(model, self.images)
                self.notes += [odd] if odd else []
                stage.result = f"{len(self.images):,} calibration images{known}"
        masks = self._group(model, traced)
        if self.request.budget and self.request.groups != "search":
            masks = self._chosen(model, traced, masks)
        with stages.stage("speedup") as stage:
            speedup = ModelSpeedup(
                model, x, masks, verify=self.how.verify, graph=traced.graph,
                budget=self.request.budget or None,
            )  # fmt: skip
            small = speedup.speedup_model()
            left = count(small, x)
            stage.result = f"{_costs_in_words(left)}; equal to the masked network"
        tuned, done = self._tune(small), speedup.report()
        done = replace(done, notes=(*self.notes, *done.notes))
        found = self._report(traced.counts, left, done, tuned, self._latency(small))
        small.train(self.given.training)
        return small, found

    # -- stages -----------------------------------------------------------------------------------

    def _check(self, model: nn.Module, traced: Traced) -> None:
        """Say what can be reached, before images are read and weights are looked at."""
        budget = {m: v for m, v in self.request.budget.items() if m != "latency"}
        if not budget or self.request.groups is not None:
            return
        with self.stages.stage("check") as stage:
            cheap = find_method("magnitude").kind
            pruner = cheap(
                model, self.request.entries, dummy_input=self.x, budget=budget, traced=traced
            )
            self._note_least(pruner)
            pruner.unwrap_model()
            stage.result = ", ".join(
                f"{measure} {_asked(value)} asked, {self.least[measure]:.3f} would be the least"
                for measure, value in budget.items()
            )

    def _group(self, model: nn.Module, traced: Traced) -> Masks | None:
        groups, request = self.request.groups, self.request
        if groups is None:
            return None
        with self.stages.stage("groups") as stage:
            kind = find_method("gconv").kind
            options: dict[str, Any] = {"dummy_input": self.x, "traced": traced}
            if self.images is not None:
                options.update(calibration=self.images, criterion="error")
            entry: dict[str, Any] = {"op_names": _convolutions(model, request.layers)}
            if isinstance(groups, int):
                entry["num_groups"] = groups
            elif groups == "search":
                options["budget"] = request.budget
            else:
                options["group_config"] = groups
            last = groups == "search" or not request.budget
            if last:
                options["reconstruct"] = self.how.settings
                options.update(self.how.options)
            pruner = kind(model, [entry], **options)
            _, masks = pruner.compress()
            self._keep_from(pruner)
            stage.result = f"{len(pruner.groups)} layers become group convolutions"
        return masks

    def _chosen(self, model: nn.Module, traced: Traced, masks: Masks | None) -> Masks:
        try:
            return self._choose(model, traced, masks)
        except UnseenError as error:
            if not self.by_default:
                raise
            self.stages.say(f"{BY_WEIGHTS} instead: {error}")
            other = find_method(BY_WEIGHTS)
            self.request = replace(self.request, name=BY_WEIGHTS, method=other)
            return self._choose(model, traced, masks)

    def _choose(self, model: nn.Module, traced: Traced, masks: Masks | None) -> Masks:
        request, how = self.request, self.how
        inside = how.trainer is not None and acts_in_training(request.method.kind, how.options)
        with self.stages.stage("prune") as stage:
            loop = PlainLoop(steps_per_epoch=how.steps_per_epoch) if inside else None
            pruner = request.method.make(
                model, request.entries, loop, **{
                    "dummy_input": self.x, "budget": request.budget, "masks": masks,
                    "calibration": self.images, "reconstruct": how.settings, "traced": traced,
                    **how.options,
                },
            )  # fmt: skip
            if not self.least and isinstance(pruner, ChannelPruner):
                self._note_least(pruner)
            if inside and how.trainer is not None:
                model.train()
                with pruner.training(epochs=how.epochs, steps_per_epoch=how.steps_per_epoch):
                    how.trainer(model)
                model.eval()
                found = pruner.get_masks()
            else:
                try:
                    _, found = pruner.compress()
                except UnseenError:
                    pruner.unwrap_model()
                    raise
            self._keep_from(pruner)
            cut = sum(_loses_outputs(model.get_submodule(one), found[one]) for one in found)
            lose = "layer loses" if cut == 1 else "layers lose"
            stage.result = f"by {request.name}: {cut or 'no'} {lose} channels"
        return found

    def _keep_from(self, pruner: TrainedPruner) -> None:
        pruner.unwrap_model()
        self.kept.update(getattr(pruner, "skipped", {}))
        self.reconstruction = pruner.reconstruction

    def _note_least(self, pruner: ChannelPruner) -> None:
        self.least = least_costs(pruner.cost, pruner.sets, pruner.requests())

    def _tune(self, small: nn.Module) -> bool:
        """Train the small network, unless training was a part of the choice."""
        how = self.how
        inside = acts_in_training(self.request.method.kind, how.options)
        if how.trainer is None or (inside and self.request.budget):
            return False
        with self.stages.stage("train") as stage:
            small.train()
            before = [weight.detach().clone() for weight in small.parameters()]
            how.trainer(small)
            now = list(small.parameters())
            if len(now) == len(before) and all(map(torch.equal, now, before)):
                self.notes.append(_UNTRAINED)
                return False
            stage.result = "the small network, by trainer"
        return True

    def _latency(self, small: nn.Module) -> float | None:
        if "latency" not in self.request.budget:
            return None
        with self.stages.stage("latency") as stage:
            both = {"dense": self.given, "small": small}
            ratio = compare_latency(both, self.x, batch_size=batch_of(self.x)).ratios["small"]
            stage.result = f"{ratio:.3f} of dense"
        return ratio

    def _report(
        self, dense: Counts, small: Counts, done: Any, tuned: bool, latency: float | None
    ) -> ShrinkReport:
        request = self.request
        names = [] if request.groups is None else ["gconv"]
        names += [request.name] if request.budget and request.groups != "search" else []
        kept = dict.fromkeys(request.kept, "named by keep") | self.kept
        return ShrinkReport(
            method=" and ".join(names),
            budget=request.budget,
            dense=dense,
            small=small,
            least=self.least,
            latency_ratio=latency,
            difference=done.difference,
            images=0 if self.images is None else len(self.images),
            reconstruction=self.reconstruction,
            kept=kept,
            tuned=tuned,
            speedup=done,
            seconds=dict(self.stages.seconds),
        )


def _convolutions(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Name the layers that group convolutions can be made of."""
    found = [name for name in layers if isinstance(model.get_submodule(name), nn.Conv2d)]
    if not found:
        raise ConfigError("groups: there is no Conv2d to split among the layers that may change")
    return found


def _loses_outputs(module: nn.Module, masks: Mapping[str, Tensor]) -> bool:
    """Tell whether masks leave a convolution or linear layer fewer outputs; norms are no layers."""
    mask = masks.get("weight")
    if mask is None or mask.dim() < 2:
        return False
    filters = mask.transpose(0, 1) if getattr(module, "transposed", False) else mask
    return not bool(filters.flatten(1).any(1).all())


def _asked(value: float) -> str:
    return f"{value:g}" if value <= 1 else f"{value:,.0f}"


def _costs_in_words(counts: Counts) -> str:
    return f"{counts.macs:,} MACs, {counts.params:,} parameters"


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave warnings of what was not pruned to the report."""
    logger = logging.getLogger("nni_gconv.pruning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
