"""CIFAR pre-activation ResNets of bottleneck blocks (PreResNet-164).

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016. Depth 9n+2, three
stages of n blocks with 16, 32 and 64 inner and four times as many outer channels; batch norm and
ReLU stand before each convolution. The form used by Network Slimming and by GConv Prune: where a
stage begins, the shortcut is a 1x1 convolution of the block's raw input.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .common import check_depth, init_weights, scaled
from .registry import register_model

EXPANSION = 4


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each behind batch norm and ReLU, and the shortcut."""

    def __init__(self, in_channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = EXPANSION * inner
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, outer, 1, stride=stride, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, 4 * inner, ceil(H / stride), ceil(W / stride))."""
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + self.downsample(x)


class PreResNet(nn.Module):
    """The network; see :func:`preresnet` for its arguments."""

    def __init__(
        self,
        depth: int = 164,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        bn_gamma: float = 1.0,
    ) -> None:
        super().__init__()
        blocks = check_depth("preresnet", depth, step=9, offset=2)
        base = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        self.layer1 = self._stage(base, base, blocks, stride=1)
        self.layer2 = self._stage(EXPANSION * base, 2 * base, blocks, stride=2)
        self.layer3 = self._stage(EXPANSION * 2 * base, 4 * base, blocks, stride=2)
        self.bn = nn.BatchNorm2d(EXPANSION * 4 * base)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(EXPANSION * 4 * base, num_classes)
        init_weights(self, bn_gamma)

    @staticmethod
    def _stage(in_channels: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (PreActBottleneck(EXPANSION * inner, inner, 1) for _ in range(blocks - 1))
        return nn.Sequential(PreActBottleneck(in_channels, inner, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.pool(self.relu(self.bn(x)))
        return self.fc(torch.flatten(x, 1))


@register_model
def preresnet(
    depth: int = 164,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    bn_gamma: float = 1.0,
) -> PreResNet:
    """Build a pre-activation bottleneck ResNet for CIFAR, of any depth.

    Parameters
    ----------
    depth : int, default 164
        9n+2; 11 is the smallest.
    num_classes : int, default 10
        Length of the output.
    in_channels : int, default 3
        Channels of the input. Any height and width from 1 on works; four and more are sensible.
    width : float, default 1.0
        Multiplier of the 16 channels of the stem, from which all others follow.
    bn_gamma : float, default 1.0
        Initial scale of the batch norms; network slimming starts from 0.5.

    Examples
    --------
    >>> import torch
    >>> preresnet(depth=11, width=0.5)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """
    return PreResNet(depth, num_classes, in_channels, width, bn_gamma)


for _depth in (11, 20, 29, 56, 110, 164):
    register_model(f"preresnet{_depth}")(partial(preresnet, depth=_depth))
