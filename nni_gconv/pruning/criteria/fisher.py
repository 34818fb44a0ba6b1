"""Fisher: how much the loss moves, to second order, when a gate behind a filter closes.

Papers: Theis, Korshunova, Tejani, Huszar, "Faster gaze prediction with dense networks and Fisher
pruning", 2018, https://arxiv.org/abs/1801.05787; Liu et al., "Group Fisher Pruning for Practical
Network Compression", ICML 2021, https://arxiv.org/abs/2108.00708.

Every output channel y_i of a layer is multiplied by a gate, which is 1. An image n has the gradient

    s_ni = dL_n / d gate_i = sum over positions of y_i * dL_n/dy_i
    score of filter i = mean over images of s_ni^2

the diagonal of the empirical Fisher matrix of the gates. Layers that share channels have a gate
each, whose scores are joined, or one for all of them (``gate: set``, as in the second paper): then
their s are summed before they are squared. One backward pass over activations, none over weights;
all images of a batch at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nni_gconv.errors import ConfigError
from nni_gconv.pruning.criteria.base import DataCriterion, GradientOptions, Layer
from nni_gconv.pruning.criteria.evidence import Passes


class FisherPruner(DataCriterion):
    """Prune the channels whose gates have the least Fisher information.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers, **options
        See :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner`; ``reduction`` and ``ranking``
        are those of all criteria.
    calibration : Calibration or iterable
        Batches of images and labels.
    loss : callable, optional
        ``loss(outputs, labels)``: the mean over images, or a number for each; default: cross
        entropy.
    gate : {"layer", "set"}
        One gate a layer, or one for all layers that share channels.

    Examples
    --------
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 2)
    ... )
    >>> batch = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> pruner = FisherPruner(net, config_list, calibration=[batch], dummy_input=batch[0])
    >>> int(pruner.compress()[1]["0"]["bias"].sum())
    4
    """

    class Options(GradientOptions):
        """Options of :class:`FisherPruner`."""

        gate: Literal["layer", "set"] = Field(
            "layer", description="One gate a layer, or one for all layers that share channels."
        )

    options: Options
    name = "fisher"
    one_measure = True

    def evidence(self, layers: Mapping[str, Layer], passes: Passes) -> Mapping[str, Tensor]:
        """Gather the gradient of each image for each gate."""
        gates: list[tuple[str, Tensor]] = []
        found: dict[str, list[Tensor]] = {name: [] for name in layers}

        def insert(name: str, module: nn.Module, _: Tensor, y: Tensor) -> Tensor:
            shape = [1] * y.dim()
            axis = y.dim() - 1 if isinstance(module, nn.Linear) else 1
            shape[0], shape[axis] = y.shape[0], y.shape[axis]
            gates.append((name, y.new_ones(shape, requires_grad=True)))
            return y * gates[-1][1]

        hooks = {layer.module: partial(insert, name) for name, layer in layers.items()}
        with passes.hooked(hooks):
            for loss, count in passes.losses():
                gradients = torch.autograd.grad(loss, [g for _, g in gates], allow_unused=True)
                sums = {name: _nothing(layer, count) for name, layer in layers.items()}
                for (name, gate), gradient in zip(gates, gradients, strict=True):
                    check_samples(self.name, name, len(gate), count)
                    if gradient is not None:
                        sums[name] = sums[name] + gradient.detach().flatten(1)
                gates.clear()
                for name, part in sums.items():
                    found[name].append(part.to("cpu", torch.float32))
        return {name: layer.per_filter(torch.cat(found[name])) for name, layer in layers.items()}

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels by mean squares over images."""
        images = len(self.images)
        # Several filters of a channel in one layer: one gate for all of them.
        gradients = [f.double().reshape(len(f), -1, images).sum(1) for f in filters]
        if self.options.gate == "set":
            return torch.stack(gradients).sum(0).square().mean(1)
        return self.combine([g.square().mean(1) for g in gradients])


def check_samples(criterion: str, name: str, samples: int, images: int) -> None:
    """A layer has to see one sample for each image, or gradients are not those of images."""
    if samples != images:
        raise ConfigError(
            f"calibration: {criterion} cannot tell images apart in {name}, which sees {samples} "
            f"samples of {images} images: exclude it, or use taylor"
        )


def _nothing(layer: Layer, count: int) -> Tensor:
    """Gradients of a layer that an image does not run through."""
    module, weight = layer.module, layer.weight
    outputs = getattr(module, "out_channels", getattr(module, "out_features", len(weight)))
    return torch.zeros(count, outputs, dtype=weight.dtype, device=weight.device)
