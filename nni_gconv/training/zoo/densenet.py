"""CIFAR DenseNets of basic layers (DenseNet-40, k = 12).

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, CVPR 2017. Depth
3n+4: three blocks of n layers (batch norm, ReLU, 3x3 convolution to k new channels), between them
a 1x1 convolution that keeps the width and an average pooling.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .common import check_depth, init_weights, scaled
from .registry import register_model


class DenseLayer(nn.Module):
    """Batch norm, ReLU and 3x3 convolution; the new channels stand behind the old ones."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, in_channels + growth, H, W)."""
        return torch.cat([x, self.conv1(self.relu(self.bn1(x)))], 1)


class Transition(nn.Module):
    """Batch norm, ReLU, 1x1 convolution and 2x2 average pooling between two blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, H // 2, W // 2)."""
        return self.pool(self.conv1(self.relu(self.bn1(x))))


class DenseNet(nn.Module):
    """The network; see :func:`densenet` for its arguments."""

    def __init__(
        self,
        depth: int = 40,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        stem: int = 16,
        bn_gamma: float = 1.0,
    ) -> None:
        super().__init__()
        layers = check_depth("densenet", depth, step=3, offset=4)
        growth = scaled(12, width)
        channels = scaled(stem, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.dense1 = self._block(channels, growth, layers)
        channels += layers * growth
        self.trans1 = Transition(channels)
        self.dense2 = self._block(channels, growth, layers)
        channels += layers * growth
        self.trans2 = Transition(channels)
        self.dense3 = self._block(channels, growth, layers)
        channels += layers * growth
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self, bn_gamma)

    @staticmethod
    def _block(channels: int, growth: int, layers: int) -> nn.Sequential:
        return nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        x = self.pool(self.relu(self.bn(x)))
        return self.fc(torch.flatten(x, 1))


@register_model
def densenet(
    depth: int = 40,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    stem: int = 16,
    bn_gamma: float = 1.0,
) -> DenseNet:
    """Build a CIFAR DenseNet without bottlenecks and compression, of any depth.

    Parameters
    ----------
    depth : int, default 40
        3n+4; 7 is the smallest.
    num_classes : int, default 10
        Length of the output.
    in_channels : int, default 3
        Channels of the input. Height and width must be 4 or more: two poolings halve them.
    width : float, default 1.0
        Multiplier of the growth rate 12 and of `stem`, from which all channels follow.
    stem : int, default 16
        Channels of the first convolution. Weights of PyTorch copies of Network Slimming want 24.
    bn_gamma : float, default 1.0
        Initial scale of the batch norms; network slimming starts from 0.5.

    Examples
    --------
    >>> import torch
    >>> densenet(depth=10, width=0.5)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    return DenseNet(depth, num_classes, in_channels, width, stem, bn_gamma)


for _depth in (10, 22, 40):
    register_model(f"densenet{_depth}")(partial(densenet, depth=_depth))
