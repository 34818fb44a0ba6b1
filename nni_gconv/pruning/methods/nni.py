"""NNI's own structured pruners with our coupling, budgets and silent masks.

NNI's pruner supplies the criterion; which channels are one, how many go, and what must be masked
with them is decided as for every other method here. That is what makes the result of, say,
``L1NormPruner`` a smaller and equal network on models with residual connections.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from nni.compression.base.compressor import Pruner
from nni.compression.utils import Evaluator
from pydantic import Field
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.checked import Checked, checked
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.channel_pruner import ChannelPruner
from nni_gconv.pruning.options import ChannelOptions
from nni_gconv.pruning.pruner import Masks, read_options


class TrainingOptions(Checked):
    """Options of NNI's pruners that score while they train."""

    training_steps: int | None = Field(
        None, ge=1, description="Steps they train; default: the epochs of the sparsify stage."
    )


class SlimOptions(TrainingOptions):
    """Options of NNI's ``SlimPruner``."""

    regular_scale: float = Field(1.0, ge=0, description="Factor of its penalty.")


#: NNI's pruners that score whole filters, each with its own options.
NNI_METHODS: dict[str, type[Checked]] = {
    "L1NormPruner": Checked,
    "L2NormPruner": Checked,
    "FPGMPruner": Checked,
    "SlimPruner": SlimOptions,
    "TaylorPruner": TrainingOptions,
}


class NNIMethodPruner(ChannelPruner):
    """Rank channels by the metric of one of NNI's pruners.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers
        As in NNI.
    method : str
        Class name in ``nni.compression.pruning``: one of :data:`NNI_METHODS`.
    options : mapping, optional
        Further arguments of that class, such as ``training_steps`` of ``TaylorPruner``.
    dummy_input, budget, coupling, schedule, masks
        See :class:`nni_gconv.pruning.channel_pruner.ChannelPruner`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> pruner = NNIMethodPruner(net, config_list, method="L1NormPruner")
    >>> int(pruner.compress()[1]["0"]["weight"].sum()) == 4 * 3 * 3 * 3
    True
    """

    reads_weights = False

    class Options(ChannelOptions):
        """Options of :class:`NNIMethodPruner`."""

        method: Literal[tuple(NNI_METHODS)] = Field(  # type: ignore[valid-type]
            title="NNI pruner", description="Class in nni.compression.pruning."
        )
        options: Mapping[str, Any] = Field({}, description="Options of that class.")

    options: Options

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        given = read_options(type(self), options)
        method = given.method
        self._options = checked(NNI_METHODS[method], given.options, method).model_dump(
            exclude_none=True
        )
        self._trains = issubclass(NNI_METHODS[method], TrainingOptions)
        if self._trains and evaluator is None:
            raise ConfigError(f"{method} scores while training: give it a sparsify stage (epochs)")
        if self._trains and given.schedule.name != "one-shot":
            raise ConfigError(f"schedule: {method} scores while it trains itself, and prunes after")
        if self._trains and not compat.is_wrapped(model):
            compat.learn_optimizer(evaluator, model)
        self._kind = getattr(importlib.import_module("nni.compression.pruning"), method)
        self._inner_evaluator = evaluator
        self._metric: dict[str, Tensor] = {}
        if given.dummy_input is None and evaluator is not None:
            options = {**options, "dummy_input": compat.evaluator_input(evaluator)}
        # Where NNI's pruner trains itself, ours only masks afterwards.
        own = None if self._trains else evaluator
        super().__init__(model, config_list, own, existed_wrappers, **options)
        for coupled in self.sets:
            for member in coupled.members:
                if member.dim != 0:
                    self.unwrap_model()
                    raise ConfigError(
                        f"config_list: {member.module} is transposed, and NNI's pruners would "
                        "score its input channels: exclude it"
                    )

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, Masks]:
        """Make coupled masks; pruners of NNI that score while training train first."""
        if not self._trains:
            return super().compress(max_steps, max_epochs)
        self.unwrap_model()
        # Without a goal NNI's pruner takes a layer for inactive and gives it no score.
        entries = [{"op_names": [name], "sparse_ratio": 0.5} for name in self.layers]
        options = dict(self._options)
        options.setdefault("training_steps", self._steps(max_steps, max_epochs))
        inner = self._kind(self.bound_model, entries, self._inner_evaluator, **options)
        self._watch(inner)
        inner.compress()
        inner.unwrap_model()
        self.wrap_again()
        return super().compress()

    def _watch(self, inner: Pruner) -> None:
        """Keep the metrics that NNI's pruner would make its masks from, and let it make none."""

        def keep(metrics: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
            self._metric = {m: t["weight"].detach().flatten().cpu() for m, t in metrics.items()}
            return {}

        inner._generate_sparsity = keep

    def _steps(self, max_steps: int | None, max_epochs: int | None) -> int:
        """NNI's scoring pruners count optimizer steps; a recipe counts epochs."""
        if max_steps is None and max_epochs is not None:
            per_epoch = getattr(self._inner_evaluator, "steps_per_epoch", None)
            max_steps = None if per_epoch is None else max_epochs * per_epoch
        if max_steps is None and "training_steps" not in self._options:
            raise ConfigError("options.training_steps: how long shall NNI's pruner train?")
        if max_steps == 0:
            raise ConfigError(
                f"{self._kind.__name__}: needs at least one step of training to score"
            )
        return max_steps or 0

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        if self._trains:
            raise ConfigError(
                f"{self._kind.__name__} scores while it trains itself: no other pruner can drive it"
            )
        super()._fuse_preprocess(evaluator)

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Sum NNI's scores over the filters of each channel, then join the layers."""
        return self.combine([f.sum(1) for f in filters])

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        metric = self._metric
        if not self._trains:
            # NNI's own formula on the weights as they are now; it reads nothing of its pruner
            # but the order of the norm and where the targets are.
            stand_in = SimpleNamespace(p=self._kind.p, _target_spaces=self._target_spaces)
            found = self._kind._calculate_metrics(stand_in, data)
            metric = {m: t["weight"].detach().flatten().cpu() for m, t in found.items()}
        scores = {
            module: {"weight": _per_filter(metric[module], targets["weight"], module)}
            for module, targets in data.items()
        }
        return super()._calculate_metrics(scores)


def _per_filter(metric: Tensor, weight: Tensor, module: str) -> Tensor:
    if metric.numel() != weight.shape[0]:
        raise ConfigError(f"NNI gave {metric.numel()} scores for {weight.shape[0]} of {module}")
    return metric.to(torch.float64).view(-1, 1)
