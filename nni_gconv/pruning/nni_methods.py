"""NNI's own structured pruners with our coupling, budgets and silent masks.

NNI's pruner supplies the criterion; which channels are one, how many go, and what must be masked
with them is decided as for every other method here. That is what makes the result of, say,
``L1NormPruner`` a smaller and equal network on models with residual connections.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nni.compression.base.compressor import Pruner
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.pruning.base import ChannelPruner, Masks, Rule
from nni_gconv.pruning.config_list import nni_entries

__all__ = ["NNI_METHODS", "NNIMethodPruner"]

#: NNI's pruners that score whole filters; True: they do so while training.
NNI_METHODS = {
    "L1NormPruner": False,
    "L2NormPruner": False,
    "FPGMPruner": False,
    "SlimPruner": True,
    "TaylorPruner": True,
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
    dummy_input, budget, coupling
        See :class:`nni_gconv.pruning.base.ChannelPruner`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> pruner = NNIMethodPruner(net, config_list, method="L1NormPruner")
    >>> int(pruner.compress()[1]["0"]["weight"].sum()) == 4 * 3 * 3 * 3
    True
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, Any] | None = None,
        *,
        method: str,
        options: Mapping[str, Any] | None = None,
        dummy_input: Any = None,
        budget: Mapping[str, float] | None = None,
        coupling: Rule = "mean",
    ) -> None:
        if method not in NNI_METHODS:
            raise ConfigError(unknown_name("NNI pruner", method, NNI_METHODS, "method"))
        import nni.compression.pruning as nni_pruning

        self._kind = getattr(nni_pruning, method)
        self._options = dict(options or {})
        known = set(inspect.signature(self._kind.__init__).parameters)
        for option in self._options:
            if option not in known:
                allowed = known - {"self", "model", "config_list", "evaluator", "existed_wrappers"}
                raise ConfigError(unknown_name("option", option, allowed or {"none"}, method))
        self._trains = NNI_METHODS[method]
        if self._trains and evaluator is None:
            raise ConfigError(f"{method} scores while training: give it a sparsify stage (epochs)")
        self._inner_evaluator = evaluator
        self._metric: dict[str, Tensor] = {}
        super().__init__(
            model,
            config_list,
            # The inner pruner trains; ours only masks afterwards.
            None,
            existed_wrappers,
            dummy_input=dummy_input if dummy_input is not None else _dummy(evaluator),
            budget=budget,
            coupling=coupling,
        )

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, Masks]:
        """Let NNI's pruner score (and train, if it does), then make coupled masks."""
        self.unwrap_model()
        entries = copy.deepcopy(nni_entries(self.layers))
        for entry in entries:
            # Without a goal NNI's pruner takes a layer for inactive and gives it no score.
            entry.setdefault("sparse_ratio", 0.5)
            entry.pop("sparse_threshold", None)
        options = dict(self._options)
        if self._trains:
            options.setdefault("training_steps", self._steps(max_steps, max_epochs))
            options["evaluator"] = self._inner_evaluator
        inner = self._kind(self.bound_model, entries, **options)
        self._watch(inner)
        inner.compress()
        inner.unwrap_model()
        self.wrap_model()
        return super().compress()

    def _watch(self, inner: Pruner) -> None:
        """Keep the metrics that NNI's pruner makes its masks from."""
        generate = inner._generate_sparsity

        def keep(metrics: dict[str, dict[str, Tensor]]) -> Any:
            self._metric = {m: t["weight"].detach().flatten().cpu() for m, t in metrics.items()}
            return generate(metrics)

        inner._generate_sparsity = keep

    def _steps(self, max_steps: int | None, max_epochs: int | None) -> int:
        """NNI's scoring pruners count optimizer steps; a recipe counts epochs."""
        if max_steps is None and max_epochs is not None:
            per_epoch = getattr(self._inner_evaluator, "steps_per_epoch", None)
            max_steps = None if per_epoch is None else max_epochs * per_epoch
        if max_steps is None and "training_steps" not in self._options:
            raise ConfigError("options.training_steps: how long shall NNI's pruner train?")
        return max_steps or 0

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Sum NNI's scores over the filters of each channel, then join the layers."""
        return self.combine([f.sum(1) for f in filters])

    def _calculate_metrics(
        self, data: dict[str, dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        scores = {
            module: {"weight": _per_filter(self._metric[module], targets["weight"])}
            for module, targets in data.items()
        }
        return super()._calculate_metrics(scores)


def _per_filter(metric: Tensor, weight: Tensor) -> Tensor:
    if metric.numel() != weight.shape[0]:
        raise ConfigError(f"NNI gave {metric.numel()} scores for {weight.shape[0]} filters")
    return metric.to(torch.float64).view(-1, 1)


def _dummy(evaluator: Evaluator | None) -> Any:
    return None if evaluator is None else compat.evaluator_input(evaluator)
