"""Second-order pruning: which channel costs least after the others have made up for it.

The formula and its papers stand in :mod:`nni_gconv.pruning.criteria.elimination`. The channels of a
coupled set are eliminated one after the other on what all layers that read the set read, over
calibration images; the order is the ranking, and the running error is the curve by which a budget
is dealt out among sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from pydantic import Field
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.display import counting
from nni_gconv.errors import BudgetError, UnseenError
from nni_gconv.graph import CoupledSet, Read
from nni_gconv.groupconv import groups_of
from nni_gconv.pruning.calibration import Geometry, read_moments, weight_matrix
from nni_gconv.pruning.channel_pruner import ChannelPruner, Metrics
from nni_gconv.pruning.criteria.base import needed_images
from nni_gconv.pruning.criteria.elimination import Reader, eliminate
from nni_gconv.pruning.options import ChannelOptions
from nni_gconv.pruning.selection.allocation import Request
from nni_gconv.pruning.selection.budget import check_reachable
from nni_gconv.pruning.selection.coupled_sets import filter_scores

#: Share of the channels of every other set that may go before streams are cut too.
_EASY = 0.75


class SecondOrderPruner(ChannelPruner):
    """Prune the channels whose loss the others make up for best.

    Parameters
    ----------
    model : nn.Module
        The trained dense model.
    config_list : list of dict
        NNI's config_list, with ``min_channels`` and ``round_to`` beside NNI's keys.
    evaluator, existed_wrappers : optional
        As in NNI.
    calibration : Calibration, Tensor or iterable of batches
        Images of the training split; labels are not needed.
    allocation : {"error", "exact", "uniform", "global"}, default "error"
        How a budget is dealt out: by the error that channels cause for what they save,
        so that the sum of errors is least (an integer program), by equal shares of all sets, or
        by their error alone.
    ridge : float, default 1e-3
        Of the mean second moment of what a layer reads.
    dummy_input, budget, coupling, schedule, masks, reconstruct
        See :class:`nni_gconv.pruning.channel_pruner.ChannelPruner`. `coupling` does not matter: the
        errors of all layers that read a set are summed.

    Raises
    ------
    ConfigError
        There is no calibration, or what reads a set cannot be seen.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> with torch.no_grad():  # the second half says what the first half says
    ...     _ = net[0].weight[4:].copy_(net[0].weight[:4]), net[0].bias[4:].copy_(net[0].bias[:4])
    >>> pruner = SecondOrderPruner(
    ...     net, [{"op_names": ["0"], "sparse_ratio": 0.5}], calibration=torch.randn(64, 3, 8, 8)
    ... )
    >>> _, masks = pruner.compress()
    >>> kept = masks["0"]["bias"].bool()
    >>> bool((kept[:4] ^ kept[4:]).all())  # one of each pair
    True
    """

    class Options(ChannelOptions):
        """Options of :class:`SecondOrderPruner`."""

        allocation: Literal["error", "exact", "uniform", "global"] = Field(
            "error",
            description="How a budget is dealt out: by error for what is saved, exact: so that the "
            "sum of errors is least (slow where there are many layers), in equal shares, "
            "or by error alone.",
        )
        streams: Literal["auto", "cut", "whole"] = Field(
            "auto",
            description="Whether channels that several layers add up to, such as residual "
            "streams, take part in a budget; auto: not where the other sets meet it with a quarter "
            "of their channels and allocation is error or exact.",
        )
        ridge: float = Field(
            1e-3, gt=0, description="Of the mean second moment of what a layer reads."
        )

    options: Options
    score_unit = 1.0

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        self._calibration = needed_images(type(self), "second_order", options)
        options["calibration"] = self._calibration
        super().__init__(model, config_list, evaluator, existed_wrappers, **options)
        self._saved: dict[int, float] = {}

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Not used: what a channel costs cannot be seen from its own filters."""
        raise NotImplementedError("second_order ranks by what reads the channels")

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Give each filter the error that its channel's going adds, in the order they go."""
        with self.unwrapped() as model:
            weights = {name: p.detach() for name, p in model.named_parameters()}
            moments = read_moments(model, self._calibration)

        def eliminated(coupled: CoupledSet) -> tuple[np.ndarray, np.ndarray]:
            readers = self._readers(coupled, weights, moments)
            return eliminate(readers, ridge=self.options.ridge)

        metrics: dict[str, dict[str, Tensor]] = {}
        with counting("coupled sets", len(self.sets), enabled=self._calibration.progress) as done:
            # The widest mostly come last; begun first, none of them is waited for alone.
            orders = []
            for found in compat.side_by_side(eliminated, self.sets[::-1]):
                orders.append(found)
                done()
        for coupled, (order, error) in zip(self.sets, orders[::-1], strict=True):
            scores = torch.empty(coupled.size, dtype=torch.float64)
            added = np.maximum.accumulate(np.diff(error, prepend=0.0))
            # Equal additions would be told apart by index; the order of elimination stands.
            scores[order] = torch.from_numpy(added * (1 + 1e-9 * np.arange(len(added))))
            for member in coupled.members:
                size = data[member.module]["weight"].shape[member.dim]
                own = metrics.setdefault(member.module, {})
                own["weight"] = filter_scores(scores, member, own.get("weight"), size)
        return metrics

    def _readers(
        self,
        coupled: CoupledSet,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
    ) -> list[Reader]:
        readers = []
        for read in self.coupling.channels.reads:
            if read.weight in moments and read.weight in weights:
                readers += _of_groups(
                    coupled,
                    self.coupling.channels.of(read.labels),
                    read,
                    weights[read.weight],
                    moments[read.weight],
                )
        if not readers:
            raise UnseenError(
                f"second_order: {coupled.name} is read by no convolution or linear layer whose "
                "inputs can be seen; exclude it, or use another method for it"
            )
        return readers

    def request(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> Request:
        """Ask with scores that compare across sets, by what a channel of the set saves."""
        asked = super().request(coupled, metrics, voter)
        if self.budget is None or self.options.allocation == "uniform":
            return asked
        group = "all" if asked.group is None else asked.group
        if self.options.allocation == "global":
            return replace(asked, group=group)
        steps = [float(asked.scores[step].sum()) for step in asked.steps]
        errors = np.cumsum([0.0, *steps])
        exact = errors if self.options.allocation == "exact" else None
        return replace(asked, group=group, unit=self._saving(coupled), errors=exact)

    def settle(
        self, requests: list[Request], sets: Sequence[CoupledSet], metrics: Metrics
    ) -> list[Request]:
        """Leave streams whole where that is asked for, or easy."""
        by_error = self.options.allocation in ("error", "exact")
        how = self.options.streams
        if self.budget is None or how == "cut" or (how == "auto" and not by_error):
            return requests
        streams = [len(self._writers(coupled)) > 1 for coupled in sets]
        whole = [
            replace(asked, high=asked.low) if stream else asked
            for asked, stream in zip(requests, streams, strict=True)
        ]
        easy = [replace(asked, high=min(asked.high, _EASY)) for asked in whole]
        try:
            check_reachable(
                self.budget, self.cost, sets, whole if how == "whole" else easy, self.latency
            )
        except BudgetError:
            if how == "whole":
                raise
            return requests
        return whole

    def _writers(self, coupled: CoupledSet) -> set[str]:
        """Name the layers whose outputs make a set; depthwise ones pass their inputs on."""
        found = set()
        for member in coupled.members:
            groups = groups_of(self._module_wrappers[member.module].module)
            if groups < self._target_spaces[member.module]["weight"].shape[member.dim]:
                found.add(member.module)
        return found

    def _saving(self, coupled: CoupledSet) -> float:
        """Share of the budgeted costs that one channel of a set takes part in."""
        key = int(coupled.classes[0])
        if key not in self._saved:
            gone = self.coupling.empty()
            gone[coupled.classes] = True
            measures = [m for m in self.budget or {} if m != "latency"] or ["macs"]
            saved = sum(1 - self.cost(m, gone) / self.cost.dense(m) for m in measures)
            self._saved[key] = max(saved / coupled.size, 1e-12)
        return self._saved[key]


def _of_groups(
    coupled: CoupledSet, classes: np.ndarray, read: Read, weight: Tensor, covariances: Tensor
) -> list[Reader]:
    """One reader for each group, or block of columns, of a layer that reads channels of a set."""
    if not np.isin(classes, coupled.classes).any():
        return []
    geometry = Geometry.of(read.node)
    groups = 1 if geometry is None else geometry.groups
    matrix = weight_matrix(weight.cpu().double(), geometry)
    width, taps = covariances.shape[-1], groups * matrix.shape[1] // len(classes)
    of = {number: unit for unit, number in enumerate(coupled.classes.tolist())}
    found = []
    for number, covariance in enumerate(covariances):
        group, begin = divmod(number * width, matrix.shape[1])
        columns: list[list[int]] = [[] for _ in range(coupled.size)]
        for column in range(width):
            unit = of.get(int(classes[(number * width + column) // taps]))
            if unit is not None:
                columns[unit].append(column)
        if not any(columns):
            continue
        rows = matrix.chunk(groups)[group][:, begin : begin + width]
        energy = float((rows @ covariance * rows).sum())
        found.append(Reader(columns, covariance, rows, energy))
    return found
