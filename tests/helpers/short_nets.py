"""torchvision's networks with fewer blocks: the same names and kinds of layers."""

from __future__ import annotations

from torch import nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class NarrowBottleneck(Bottleneck):
    """As wide outside as inside."""

    expansion = 1


def basic(num_classes: int) -> nn.Module:
    """ResNet-18 and -34."""
    return ResNet(BasicBlock, [2, 1, 1, 2], num_classes=num_classes)


def bottlenecks(num_classes: int) -> nn.Module:
    """ResNet-50 and -101, a quarter as wide between blocks."""
    return ResNet(NarrowBottleneck, [2, 1, 1, 1], num_classes=num_classes)


def dense(num_classes: int) -> nn.Module:
    """DenseNet-121 to -201."""
    return DenseNet(32, (3, 2, 2, 2), num_classes=num_classes)
