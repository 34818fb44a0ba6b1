"""Network slimming: an L1 penalty on batch norm scales during training, then a cut by their size.

Paper: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519. Trained is

    loss + strength * sum |gamma|

over the scales gamma of the norms behind the selected layers. Two ways to do it:

- ``penalty="subgradient"`` (the paper): ``strength * sign(gamma)`` is added to the gradient. Scales
  hover around zero and never reach it.
- ``penalty="proximal"``: after each step ``gamma <- sign(gamma) * max(|gamma| - t * strength, 0)``
  with the step size ``t`` that the subgradient would have had in the long run: the learning rate,
  over ``1 - momentum`` for SGD. Scales become zero exactly, so what is cut was silent but for its
  shift.

Which norms scale a layer's channels is found by tracing. A layer without any is scored and
penalised by the L2 norms of its filters, which are its scales (a group lasso).

This is not what NNI calls ``SlimPruner``: that one multiplies every target by a new parameter,
trains it by an Adam of its own, and drops it when the model is unwrapped. A strength for one means
nothing for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from pydantic import Field
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.graph import CoupledSet, Coupling
from nni_gconv.pruning.channel_pruner import ChannelPruner, Metrics
from nni_gconv.pruning.l1_penalty import add_subgradient_, shrink_
from nni_gconv.pruning.methods.slimming.scales import clamped_threshold, percentile_threshold
from nni_gconv.pruning.options import ChannelOptions
from nni_gconv.pruning.selection.allocation import Request
from nni_gconv.pruning.selection.scores import filter_norms


@dataclass(frozen=True)
class _Norm:
    """The scales that one norm gives to the channels of a coupled set.

    Scale ``rows[i]`` of the module's weight acts on channel ``units[i]`` of the set.
    """

    module: str
    rows: np.ndarray
    units: np.ndarray

    def on_channels(self, scales: np.ndarray, size: int) -> np.ndarray:
        """Largest scale that acts on each channel."""
        found = np.zeros(size)
        np.maximum.at(found, self.units, scales[self.rows])
        return found


class SlimmingPruner(ChannelPruner):
    """Train with an L1 penalty on batch norm scales, and prune the channels of small scales.

    Without an evaluator, channels are pruned by the scales the model has: those of a network that
    was trained with the penalty elsewhere.

    Parameters
    ----------
    model : nn.Module
        The dense model, trained or not.
    config_list : list of dict
        NNI's config_list. Layers that share a ``global_group_id`` and a ``sparse_ratio`` are cut
        by one threshold, the paper's global percentile; without a group each layer loses its
        ratio. To leave residual streams whole (inner channels only), select inner layers only.
    evaluator : Evaluator, optional
        NNI's evaluator, to train with the penalty.
    existed_wrappers : dict, optional
        Set by ``from_compressor``.
    strength : float, default 1e-4
        Factor of the penalty. The paper uses 1e-4 for VGG and 1e-5 for ResNet-164 and DenseNet-40
        on CIFAR; more for a few epochs on a trained network (1e-3).
    penalty : {"proximal", "subgradient"}, default "proximal"
        How it acts, see above.
    weigh_by : {"macs", "params"}, optional
        Let the strength of each layer follow what one of its channels costs, relative to the mean
        over all channels.
    initial_scale : float, optional
        Set penalised scales to this before the training; the paper uses 0.5 from scratch.
    decay_scales : bool, default False
        Let the optimizer's weight decay act on penalised scales as well, as in the paper's code.
    clamp : bool, default False
        Lower the threshold of a group until each of its layers keeps its largest scale, as the
        reference does where it prunes inner channels only; one weak layer then keeps all others
        from being pruned. By default ``min_channels`` (1) of each layer stay whatever the
        threshold.
    dummy_input, budget, schedule
        See :class:`nni_gconv.pruning.channel_pruner.ChannelPruner`. For a budget, layers of one
        ``global_group_id`` are ranked by their scales as they are; others lose equal shares.
    coupling : {"mean", "max", "union"}, default "mean"
        How norms that scale the same channels agree: by the mean or the largest of their scales; or
        by union, where every norm has its own threshold and a channel stays if it reaches any of
        them: the paper's percentile, ``int(N * ratio)`` of ``N`` scales, and the reference's rule
        for residual networks.

    Notes
    -----
    Several passes reach further than one: prune moderately, speed up, fine-tune, and begin anew
    with the small model.

    >>> for _ in range(2):  # doctest: +SKIP
    ...     pruner = SlimmingPruner(model, config_list, evaluator_of(model))
    ...     _, masks = pruner.compress(max_epochs=20)
    ...     pruner.unwrap_model()
    ...     model = ModelSpeedup(model, dummy_input, masks).speedup_model()
    ...     finetune(model)

    Examples
    --------
    >>> from nni_gconv import ModelSpeedup, SlimmingPruner
    >>> net = nn.Sequential(
    ...     nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    ... )
    >>> net[1].weight.data = torch.tensor([0.9, 0.05, -0.6, 0.01])
    >>> pruner = SlimmingPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}])
    >>> _, masks = pruner.compress()
    >>> masks["1"]["weight"]
    tensor([1., 0., 1., 0.])
    >>> pruner.unwrap_model()
    >>> ModelSpeedup(net, torch.zeros(1, 3, 32, 32), masks).speedup_model()[0].out_channels
    2
    """

    score_unit = 1.0
    reads_weights = False

    class Options(ChannelOptions):
        """Options of :class:`SlimmingPruner`."""

        strength: float = Field(1e-4, ge=0, description="Factor of the penalty.")
        penalty: Literal["proximal", "subgradient"] = Field(
            "proximal", description="How it acts; proximal makes scales zero exactly."
        )
        weigh_by: Literal["macs", "params"] | None = Field(
            None, title="cost", description="Penalise channels by what they cost."
        )
        initial_scale: float | None = Field(
            None, ge=0, description="Penalised scales are set to this before the training."
        )
        decay_scales: bool = Field(False, description="Weight decay acts on them as well.")
        clamp: bool = Field(False, description="Each layer of a group keeps its largest scale.")

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
        self._norms = _norms(self.coupling, self.sets)

    # -- scores -----------------------------------------------------------------------------------

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score the channels of layers without a norm: by the norms of their filters."""
        norms = torch.stack([filter_norms(f) for f in filters])
        return norms.mean(0) if self.rule == "mean" else norms.amax(0)

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        metrics = super()._calculate_metrics(data)
        for norm in (norm for norms in self._norms.values() for norm in norms):
            scale = self._scale(norm.module).detach().abs()
            metrics[norm.module] = {"weight": scale.to("cpu", torch.float64)}
        return metrics

    def channel_scores(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> np.ndarray:
        """Scales of the norms behind a set where it has any."""
        norms = self._norms[_key(coupled)]
        if not norms:
            return super().channel_scores(coupled, metrics, voter)
        chosen = [norm for norm in norms if norm.module == voter] or norms
        scores = [n.on_channels(metrics[n.module]["weight"].numpy(), coupled.size) for n in chosen]
        return np.mean(scores, axis=0) if self.rule == "mean" else np.max(scores, axis=0)

    def voters(self, coupled: CoupledSet) -> list[str]:
        """Name the norms of a set, each with a threshold of its own."""
        return [n.module for n in self._norms[_key(coupled)]] or super().voters(coupled)

    def settle(
        self, requests: list[Request], sets: Sequence[CoupledSet], metrics: Metrics
    ) -> list[Request]:
        """Under union: the paper's threshold for every group, or for a norm without a group."""
        if self.rule != "union" or self.budget is not None:
            return requests
        groups: dict[Any, list[Request]] = {}
        for number, request in enumerate(requests):
            alone = request.group is None
            groups.setdefault(("alone", number) if alone else request.group, []).append(request)
        settled = {}
        for group in groups.values():
            ratio = group[0].ratio
            if ratio is None:
                continue
            scales = [torch.from_numpy(request.scores) for request in group]
            threshold = percentile_threshold(scales, ratio)
            if self.options.clamp:
                threshold = clamped_threshold(scales, threshold)
            for request in group:
                settled[id(request)] = replace(request, ratio=None, group=None, threshold=threshold)
        return [settled.get(id(request), request) for request in requests]

    # -- the penalty ------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        """Work out how strongly each scale is penalised, and free it of weight decay."""
        super().prepare_training()
        strengths = self._strengths()
        scales = [p for p in strengths if p.dim() == 1]
        if not self.options.decay_scales:
            self.split_groups(scales, weight_decay=0.0)
        self._terms = []
        for number, group in enumerate(self.optimizer.param_groups):
            mine = [p for p in group["params"] if p in strengths]
            for one in (True, False):
                chosen = [p for p in mine if (p.dim() == 1) is one]
                if chosen:
                    self._terms.append(_Term(number, one, chosen, [strengths[p] for p in chosen]))

    def begin_training(self) -> None:
        """Set the scales to what the training shall begin with."""
        if self.options.initial_scale is not None:
            for norm in (norm for norms in self._norms.values() for norm in norms):
                scale = self._scale(norm.module)
                if isinstance(scale, nn.Parameter):  # a frozen one stays
                    rows = torch.from_numpy(norm.rows).to(scale.device)
                    scale[rows] = self.options.initial_scale
        super().begin_training()

    def before_step(self) -> None:
        """Add the subgradient of the penalty to the gradients."""
        super().before_step()
        if self.options.penalty == "subgradient":
            for term in self._terms:
                term.add_subgradient()

    def after_step(self) -> None:
        """Shrink the scales by the proximal map of the penalty."""
        if self.options.penalty == "proximal":
            for term in self._terms:
                term.shrink(self.step_size(self.optimizer.param_groups[term.group]))
        super().after_step()

    def _scale(self, module: str) -> Tensor:
        parameter: Tensor = self._target_spaces[module]["weight"].target
        return parameter

    def _strengths(self) -> dict[nn.Parameter, Tensor]:
        """Strength of the penalty on each scale, or on each filter of layers without a norm."""
        strengths: dict[nn.Parameter, Tensor] = {}
        for coupled, relative in zip(self.sets, self._relative_cost(), strict=True):
            norms = self._norms[_key(coupled)]
            acting = [(n.module, 0, n.rows) for n in norms]
            for module, dim, rows in acting or [(m.module, m.dim, m.rows) for m in coupled.members]:
                parameter = self._scale(module)
                if not isinstance(parameter, nn.Parameter) or not parameter.requires_grad:
                    continue
                shape = [-1 if d == dim else 1 for d in range(parameter.dim())]
                blank = parameter.new_zeros(parameter.shape[dim]).view(shape)
                made = strengths.setdefault(parameter, blank)
                made.view(-1)[torch.from_numpy(rows).to(made.device)] = (
                    self.options.strength * relative
                )
        return strengths

    def _relative_cost(self) -> list[float]:
        """What a channel of each set costs, relative to the mean over all channels."""
        if self.options.weigh_by is None:
            return [1.0] * len(self.sets)
        dense, costs = self.cost.dense(self.options.weigh_by), []
        for coupled in self.sets:
            gone = self.coupling.empty()
            steps = self._asked(coupled, np.zeros(coupled.size), coupled.members).steps
            step = steps[0] if steps else np.zeros(0, dtype=np.int64)
            gone[coupled.classes[step]] = True
            costs.append((dense - self.cost(self.options.weigh_by, gone)) / max(1, len(step)))
        mean = np.average(costs, weights=[s.size for s in self.sets]) or 1.0
        return [cost / mean for cost in costs]


@dataclass
class _Term:
    """Penalised parameters of one parameter group: scales, or (`single` False) whole filters."""

    group: int
    single: bool
    parameters: list[nn.Parameter]
    strengths: list[Tensor]

    def add_subgradient(self) -> None:
        found = [
            (p.grad, p, strength)
            for p, strength in zip(self.parameters, self.strengths, strict=True)
            if p.grad is not None
        ]
        if self.single:
            add_subgradient_(
                [g for g, _, _ in found], [p for _, p, _ in found], [s for *_, s in found]
            )
            return
        for gradient, p, strength in found:
            gradient.add_(p * (strength / _norm_of(p, strength)))

    def shrink(self, step: float) -> None:
        thresholds = list(torch._foreach_mul(self.strengths, step))
        if self.single:
            shrink_(self.parameters, thresholds)
        else:
            for p, threshold in zip(self.parameters, thresholds, strict=True):
                p.mul_((1 - threshold / _norm_of(p, threshold)).clamp_min_(0))


def _norm_of(weight: Tensor, like: Tensor) -> Tensor:
    """L2 norm of each filter, in a shape that broadcasts as `like` does; never zero."""
    dims = [d for d in range(weight.dim()) if like.shape[d] == 1 and weight.shape[d] != 1]
    norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=True) if dims else weight.abs()
    return norm.clamp_min(torch.finfo(weight.dtype).tiny)


def _key(coupled: CoupledSet) -> int:
    """Number that names a coupled set: its first class."""
    return int(coupled.classes[0])


def _norms(coupling: Coupling, sets: Sequence[CoupledSet]) -> dict[int, tuple[_Norm, ...]]:
    """Norms that scale every channel of a set, in the order of the model, by the set's key."""
    scaled = []
    for axis in coupling.channels.axes.values():
        module, _, target = axis.tensor.rpartition(".")
        known = compat.is_maskable(coupling.graph.modules[module], target)
        if axis.role == "scale" and target == "weight" and known:
            scaled.append((module, coupling.channels.of(axis.labels).reshape(-1)))
    found = {}
    for coupled in sets:
        unit = np.full(len(coupling.empty()), -1)
        unit[coupled.classes] = np.arange(coupled.size)
        norms = [
            _Norm(m, np.flatnonzero(unit[of] >= 0), unit[of[unit[of] >= 0]]) for m, of in scaled
        ]
        found[_key(coupled)] = tuple(n for n in norms if len(np.unique(n.units)) == coupled.size)
    return found
