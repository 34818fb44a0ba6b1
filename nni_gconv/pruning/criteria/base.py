"""What all criteria share: layers of a set are joined, sets are ranked together, images looked at.

A criterion says what one filter is worth; everything else is that of every channel pruner. Two
options stand beside its own: ``reduction`` joins the scores that the layers of a coupled set give
to one channel, and ``ranking`` says which sets compete for the same budget.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from pydantic import Field, model_validator
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.errors import ConfigError, DataError
from nni_gconv.graph import CoupledSet
from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.channel_pruner import ChannelPruner, Metrics
from nni_gconv.pruning.criteria.evidence import Loss, Passes
from nni_gconv.pruning.options import ChannelOptions
from nni_gconv.pruning.pruner import read_options
from nni_gconv.pruning.selection.allocation import Request

Reduction = Literal["sum", "mean", "max", "prod", "first"]
Ranking = Literal["global", "isomorphic", "uniform"]

_JOINED: dict[Reduction, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.sum(0),
    "mean": lambda scores: scores.mean(0),
    "max": lambda scores: scores.amax(0),
    "prod": lambda scores: scores.prod(0),
    "first": lambda scores: scores[0],
}


class CriterionOptions(ChannelOptions):
    """What every criterion takes."""

    reduction: Reduction | None = Field(
        None,
        description="How the scores of layers that share channels are joined, as they are; default:"
        " by coupling, or their sum where they measure loss.",
    )
    ranking: Ranking | None = Field(
        None,
        description="Which sets are ranked against each other: all (global), those of the same "
        "layers and shapes (isomorphic), none (uniform); default: by global_group_id.",
    )

    @model_validator(mode="after")
    def _joined_once(self) -> CriterionOptions:
        if self.reduction is not None and self.coupling == "union":
            raise ConfigError("reduction: under coupling union each layer votes; leave it out")
        return self


class Criterion(ChannelPruner):
    """Base of criteria: define :meth:`rank`, and options in a class derived from these."""

    Options: type[CriterionOptions] = CriterionOptions
    options: CriterionOptions
    #: Whether scores of different layers are of one measure: they add up and compare as they are.
    one_measure: ClassVar[bool] = False
    reads_weights = False

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, config_list, evaluator, existed_wrappers, **options)
        self.score_unit = 1.0 if self.one_measure else None
        try:
            self._check_ranking()
        except ConfigError:
            self.unwrap_model()
            raise

    def combine(self, scores: Sequence[Tensor]) -> Tensor:
        """Join the scores that several layers give to the same channels."""
        how = self.options.reduction
        if how is None and self.one_measure and "coupling" not in self.options.model_fields_set:
            how = "sum"
        if how is None or len(scores) == 1:
            return super().combine(scores)
        return _JOINED[how](torch.stack(list(scores)))

    def request(self, coupled: CoupledSet, metrics: Metrics, voter: str) -> Request:
        """Gather what the layers of a set ask, ranked against the sets that `ranking` says."""
        asked = super().request(coupled, metrics, voter)
        if self.options.ranking is None:
            return asked
        return replace(asked, group=self._rivals(coupled))

    def settle(
        self, requests: list[Request], sets: Sequence[CoupledSet], metrics: Metrics
    ) -> list[Request]:
        """Let every group of isomorphic sets give an equal share to a budget."""
        if self.options.ranking != "isomorphic" or self.budget is None:
            return requests
        groups: dict[Any, list[int]] = {}
        for number, asked in enumerate(requests):
            groups.setdefault(asked.group, []).append(number)
        settled = list(requests)
        for members in groups.values():
            relative = [requests[i].scores / requests[i].scale for i in members]
            every = np.sort(np.concatenate(relative))
            for i, scores in zip(members, relative, strict=True):
                place = np.searchsorted(every, scores, side="right") / len(every)
                settled[i] = replace(requests[i], scores=place, unit=1.0)
        return settled

    def _rivals(self, coupled: CoupledSet) -> str | None:
        if self.options.ranking != "isomorphic":
            return self.options.ranking if self.options.ranking == "global" else None
        modules = [self.coupling.graph.modules[m.module] for m in coupled.members]
        weights = [self._target_spaces[m.module]["weight"].target for m in coupled.members]
        kinds = [
            f"{type(module).__name__}{tuple(weight.shape)}"
            for module, weight in zip(modules, weights, strict=True)
        ]
        return f"{coupled.size} {sorted(kinds)}"

    def _check_ranking(self) -> None:
        if self.options.ranking is None:
            return
        ratios: dict[str, tuple[str, float | None]] = {}
        for coupled in self.sets:
            for member in coupled.members:
                layer = self.layers[member.module]
                if layer.global_group_id is not None:
                    raise ConfigError(
                        f"ranking: {member.module} has a global_group_id too; give one or the other"
                    )
                rivals = self._rivals(coupled)
                if rivals is None:
                    continue
                name, ratio = ratios.setdefault(rivals, (member.module, layer.sparse_ratio))
                if ratio != layer.sparse_ratio:
                    raise ConfigError(
                        f"ranking: {name} and {member.module} are ranked together, and their "
                        f"sparse_ratio differs ({ratio} and {layer.sparse_ratio})"
                    )


@dataclass(frozen=True)
class Layer:
    """A layer that makes channels of a set.

    Attributes
    ----------
    module : nn.Module
        The layer itself, whether NNI has wrapped it or not.
    weight : Tensor
        What is scored: as trained, less what masks given earlier take.
    dim : int
        Axis of the weight that holds its filters.
    """

    module: nn.Module
    weight: Tensor
    dim: int

    def per_filter(self, outputs: Tensor) -> Tensor:
        """Give numbers for each output channel to the filters that make them, by sums.

        Parameters
        ----------
        outputs : Tensor, shape (n, outputs)

        Returns
        -------
        Tensor, with `n` and the filters where the weight has its axes
            Readable as a weight: n numbers a filter.
        """
        filters = self.weight.shape[self.dim]
        # A transposed convolution: of groups along axis 1, of several outputs a row along axis 0.
        parts = (
            outputs.reshape(len(outputs), -1, filters)
            if self.dim
            else (outputs.reshape(len(outputs), filters, -1).movedim(2, 1))
        )
        joined = parts.sum(1)
        return joined if self.dim else joined.T


def needed_images(kind: type[ChannelPruner], name: str, given: Mapping[str, Any]) -> Calibration:
    """Return the images among a criterion's options; said before the model is looked at.

    Raises
    ------
    ConfigError
        There are none.
    """
    images: Calibration | None = read_options(kind, given).calibration
    if images is None:
        raise ConfigError(
            f"calibration: {name} looks at images: give calibration= (a training loader or "
            "Calibration), in a recipe prune.calibration"
        )
    return images


class DataCriterion(Criterion):
    """Base of criteria that look at calibration images: define :meth:`evidence` and :meth:`rank`.

    The images go through the network as it is masked now, in evaluation mode; parameters,
    gradients, buffers, modes and random numbers are left as they were.
    """

    #: Name in messages, and whether labels are needed beside the images.
    name: ClassVar[str]
    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        self.images = options["calibration"] = needed_images(type(self), self.name, options)
        if self.needs_labels and self.images.labels is None:
            raise ConfigError(
                f"calibration: {self.name} needs labels: give batches of (images, labels)"
            )
        super().__init__(model, config_list, evaluator, existed_wrappers, **options)

    @abstractmethod
    def evidence(self, layers: Mapping[str, Layer], passes: Passes) -> Mapping[str, Tensor]:
        """Look at images, and say of each layer what :meth:`rank` is to see in place of its weight.

        Parameters
        ----------
        layers : mapping of str to Layer
            Layers that make channels that can go.
        passes : Passes
            Runs the images, and the loss.

        Returns
        -------
        mapping of str to Tensor
            As long as the weight along the axis of its filters.
        """

    def _collect_data(self) -> dict[str, dict[str, Tensor]]:
        weights = super()._collect_data()
        layers = {
            m.module: Layer(
                self.coupling.graph.modules[m.module], weights[m.module]["weight"], m.dim
            )
            for coupled in self.sets
            for m in coupled.members
        }
        loss: Loss | None = getattr(self.options, "loss", None)
        passes = Passes(self.bound_model, self.images, loss, self.options.masks)
        found = self.evidence(layers, passes)
        for name, values in found.items():
            if not bool(values.isfinite().all()):
                raise DataError(
                    f"calibration: {self.name} finds numbers in {name} that are not finite; look "
                    "at the network's weights, or take double()"
                )
        return {name: {"weight": found[name]} for name in weights}


class GradientOptions(CriterionOptions):
    """What criteria take that look at gradients."""

    loss: Any = Field(
        None,
        description="loss(outputs, labels): the mean over images, or a number for each; default: "
        "cross entropy.",
    )

    @model_validator(mode="after")
    def _callable(self) -> GradientOptions:
        if self.loss is not None and not callable(self.loss):
            raise ConfigError(f"loss: {self.loss!r} is not allowed (a function of Python)")
        return self


def trained_weight(layer: Layer, name: str) -> Tensor:
    """Return the parameter that a layer's weight is trained as."""
    found = compat.trained_weight(layer.module)
    if found is None:
        raise ConfigError(f"config_list: {name} has a weight that is computed, not a parameter")
    return found
