"""CIFAR CondenseNets with dense convolutions (CondenseNet-86).

Huang, Liu, van der Maaten, Weinberger: CondenseNet, CVPR 2018. Three blocks of dense layers (batch
norm, ReLU, 1x1 convolution to 4k channels; batch norm, ReLU, 3x3 convolution to k new channels)
whose growth k doubles from block to block, and nothing but an average pooling between them. The
paper learns the groups of its 1x1 convolutions while it trains and has fixed groups in the 3x3
ones; here all are dense, which is where a conversion into group convolutions starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nni_gconv.errors import ConfigError

from .common import init_weights, scaled
from .registry import register_model


class CondenseLayer(nn.Module):
    """Bottleneck dense layer; the new channels stand behind the old ones."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        inner = bottleneck * growth
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, in_channels + growth, H, W)."""
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        return torch.cat([x, out], 1)


class CondenseNet(nn.Module):
    """The network; see :func:`condensenet` for its arguments."""

    def __init__(
        self,
        stages: Sequence[int] = (14, 14, 14),
        growth: Sequence[int] = (8, 16, 32),
        bottleneck: int = 4,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if not stages or len(stages) != len(growth):
            raise ConfigError(
                f"model.options: stages {list(stages)} and growth {list(growth)} must be two "
                "lists of the same length, one entry a block"
            )
        rates = [scaled(k, width) for k in growth]
        channels = 2 * rates[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for layers, rate in zip(stages, rates, strict=True):
            block = [CondenseLayer(channels + i * rate, rate, bottleneck) for i in range(layers)]
            blocks.append(nn.Sequential(*block))
            channels += layers * rate
        self.blocks = nn.ModuleList(blocks)
        self.pools = nn.ModuleList(nn.AvgPool2d(2) for _ in blocks[1:])
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.blocks[0](self.conv1(x))
        for index, pool in enumerate(self.pools, start=1):
            x = self.blocks[index](pool(x))
        x = self.pool(self.relu(self.bn(x)))
        return self.fc(torch.flatten(x, 1))


@register_model
def condensenet(
    stages: Sequence[int] = (14, 14, 14),
    growth: Sequence[int] = (8, 16, 32),
    bottleneck: int = 4,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
) -> CondenseNet:
    """Build a CIFAR CondenseNet with dense convolutions; ``condensenet86`` is the paper's size.

    Parameters
    ----------
    stages : sequence of int, default (14, 14, 14)
        Layers of each block; the depth in the name is twice their sum and two.
    growth : sequence of int, default (8, 16, 32)
        New channels of a layer, for each block. The stem has twice the first.
    bottleneck : int, default 4
        Channels between the two convolutions of a layer, in multiples of its growth.
    num_classes : int, default 10
        Length of the output.
    in_channels : int, default 3
        Channels of the input. Each block after the first halves height and width, so the defaults
        need 4 or more.
    width : float, default 1.0
        Multiplier of every growth rate.

    Examples
    --------
    >>> import torch
    >>> condensenet(stages=(2, 2, 2), width=0.5)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    return CondenseNet(stages, growth, bottleneck, num_classes, in_channels, width)


register_model("condensenet86")(
    partial(condensenet, stages=(14, 14, 14), growth=(8, 16, 32), bottleneck=4)
)
