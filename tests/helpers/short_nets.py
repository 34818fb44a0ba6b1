"""torchvision's networks with fewer blocks and filters: the same names and kinds of layers."""

from __future__ import annotations

from torch import nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class NarrowBottleneck(Bottleneck):
    """As wide outside as inside."""

    expansion = 1


class NarrowResNet(ResNet):
    """A quarter as wide."""

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # the first, behind the stem
            self.inplanes = 16
            self.conv1 = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
        return super()._make_layer(block, planes // 4, blocks, stride, dilate)


def _narrow(block: type[nn.Module], blocks: list[int], num_classes: int) -> nn.Module:
    model = NarrowResNet(block, blocks)
    model.fc = nn.Linear(model.inplanes, num_classes)
    return model


def basic(num_classes: int) -> nn.Module:
    """ResNet-18 and -34."""
    return _narrow(BasicBlock, [2, 1, 1, 2], num_classes)


def bottlenecks(num_classes: int) -> nn.Module:
    """ResNet-50 and -101, a quarter as wide again between blocks."""
    return _narrow(NarrowBottleneck, [2, 1, 1, 1], num_classes)


def dense(num_classes: int) -> nn.Module:
    """DenseNet-121 to -201."""
    return DenseNet(16, (3, 2, 2, 2), num_init_features=32, num_classes=num_classes)
