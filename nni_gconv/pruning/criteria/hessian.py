"""Hessian: how much the loss moves, to second order, when weights become zero.

Papers: LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989; with the empirical Fisher matrix
in place of the Hessian as in Singh and Alistarh, "WoodFisher", NeurIPS 2020.

    score of filter i = sum over its weights of w^2 * E[g^2],    g = gradient of one image's loss

The mean is over images: gradients of single images, not those of batches, whose squares are smaller
by what images disagree about. They are formed layer by layer from what a layer reads and the
gradient of what it says, a few images at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn import functional as F

from nni_gconv.errors import ConfigError
from nni_gconv.pruning.criteria.base import DataCriterion, GradientOptions, Layer
from nni_gconv.pruning.criteria.evidence import Passes
from nni_gconv.pruning.criteria.fisher import check_samples

#: Numbers in the gradients of single images that are held at once.
_AT_ONCE = 2**25
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class HessianPruner(DataCriterion):
    """Prune the channels whose weights have the least squared size times curvature.

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

    Examples
    --------
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 2)
    ... )
    >>> batch = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> pruner = HessianPruner(net, config_list, calibration=[batch], dummy_input=batch[0])
    >>> int(pruner.compress()[1]["0"]["bias"].sum())
    4
    """

    Options = GradientOptions
    options: GradientOptions
    name = "hessian"
    one_measure = True

    def evidence(self, layers: Mapping[str, Layer], passes: Passes) -> Mapping[str, Tensor]:
        """Multiply the square of each weight by the mean square of its gradients."""
        squares = {
            name: torch.zeros_like(layer.weight, dtype=torch.float64)
            for name, layer in layers.items()
        }
        calls: list[tuple[str, Tensor, Tensor]] = []

        def watch(name: str, _: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            shift = torch.zeros_like(y, requires_grad=True)
            calls.append((name, x.detach(), shift))
            return y + shift

        hooks = {layer.module: partial(watch, name) for name, layer in layers.items()}
        with passes.hooked(hooks):
            for loss, count in passes.losses():
                found = torch.autograd.grad(loss, [c[2] for c in calls], allow_unused=True)
                uses: dict[str, list[tuple[Tensor, Tensor]]] = {}
                for (name, x, _), gradient in zip(calls, found, strict=True):
                    check_samples(self.name, name, len(x), count)
                    if gradient is not None:
                        uses.setdefault(name, []).append((x, gradient))
                calls.clear()
                for name, pairs in uses.items():
                    layer = layers[name]
                    squares[name] += _sum_of_squares(layer, name, pairs)
        return {
            name: layer.weight.to(torch.float64).square() * squares[name] / len(passes)
            for name, layer in layers.items()
        }

    def rank(self, filters: Sequence[Tensor]) -> Tensor:
        """Score channels by sums over their weights."""
        return self.combine([f.sum(1) for f in filters])


@torch.no_grad()
def _sum_of_squares(layer: Layer, name: str, uses: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Square each image's gradient of a weight, summed over the uses of the layer; sum images."""

    def of_one(*pairs: Tensor) -> Tensor:
        total: Any = 0
        for x, gradient in zip(pairs[::2], pairs[1::2], strict=True):
            again = partial(_apply, layer.module, name, x[None])
            _, pull, *_ = vjp(again, layer.weight)
            total = total + pull(gradient[None])[0]
        return total

    total = torch.zeros_like(layer.weight, dtype=torch.float64)
    flat = [tensor for pair in uses for tensor in pair]
    size = max(1, _AT_ONCE // layer.weight.numel())
    for part in zip(*(tensor.split(size) for tensor in flat), strict=True):
        total += vmap(of_one)(*part).to(torch.float64).square().sum(0)
    return total


def _apply(module: nn.Module, name: str, x: Tensor, weight: Tensor) -> Tensor:
    """Run a layer with other weights, without its bias."""
    plain: Any = module
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return _TRANSPOSED[weight.dim() - 2](
            x, weight, None, plain.stride, plain.padding, plain.output_padding, plain.groups,
            plain.dilation,
        )  # fmt: skip
    if isinstance(module, nn.modules.conv._ConvNd):
        return plain._conv_forward(x, weight, None)
    raise ConfigError(
        f"config_list: hessian does not know layers such as {name} ({type(module).__name__}): "
        "exclude it, or use taylor"
    )
