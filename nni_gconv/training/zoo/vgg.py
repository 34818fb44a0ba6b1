"""CIFAR VGGs with batch norm and a single linear layer.

Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015, configurations A, B, D and E, in
the CIFAR form of Network Slimming (Liu et al., ICCV 2017): convolutions with bias, four 2x2
poolings, then one over whatever is left.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nni_gconv.errors import ConfigError, unknown_name

from .common import init_weights, scaled
from .registry import register_model

WIDTHS = (64, 128, 256, 512, 512)
CONVS_PER_STAGE = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
LAST_POOLS: dict[str, type[nn.Module]] = {
    "avg": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
}


class VGG(nn.Module):
    """The network; see :func:`vgg` for its arguments."""

    def __init__(
        self,
        depth: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        last_pool: Literal["avg", "max"] = "avg",
        bn_gamma: float = 1.0,
    ) -> None:
        super().__init__()
        if depth not in CONVS_PER_STAGE:
            raise ConfigError(f"model.options.depth: vgg has depths 11, 13, 16, 19, not {depth!r}")
        if last_pool not in LAST_POOLS:
            raise ConfigError(
                unknown_name("pooling", last_pool, LAST_POOLS, "model.options.last_pool")
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, convs in enumerate(CONVS_PER_STAGE[depth]):
            for _ in range(convs):
                out = scaled(WIDTHS[stage], width)
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                ]
                channels = out
            layers.append(nn.MaxPool2d(2))
        # The fifth pooling is adaptive: the same at 32x32, and defined down to 16x16.
        layers[-1] = LAST_POOLS[last_pool](1)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self, bn_gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.features(x), 1))


@register_model
def vgg(
    depth: int = 16,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    last_pool: Literal["avg", "max"] = "avg",
    bn_gamma: float = 1.0,
) -> VGG:
    """Build a CIFAR VGG with batch norm; registered as ``vgg`` and for each depth.

    Parameters
    ----------
    depth : {11, 13, 16, 19}, default 16
        Layers with weights, counted as in the ImageNet networks.
    num_classes : int, default 10
        Length of the output.
    in_channels : int, default 3
        Channels of the input. Height and width must be 16 or more: four poolings halve them.
    width : float, default 1.0
        Multiplier of the channels of every convolution.
    last_pool : {"avg", "max"}, default "avg"
        The fifth pooling. "avg" is Network Slimming's; weights of a VGG with five max-poolings
        want "max". At 32x32 both are the published 2x2 pooling, exactly.
    bn_gamma : float, default 1.0
        Initial scale of the batch norms; network slimming starts from 0.5.

    Returns
    -------
    VGG
        Keys of its state dict: ``features.{index}`` and ``classifier``.

    Examples
    --------
    >>> import torch
    >>> vgg(depth=11, width=0.125)(torch.zeros(2, 3, 28, 28)).shape
    torch.Size([2, 10])
    """
    return VGG(depth, num_classes, in_channels, width, last_pool, bn_gamma)


for _depth in CONVS_PER_STAGE:
    register_model(f"vgg{_depth}")(partial(vgg, depth=_depth))
