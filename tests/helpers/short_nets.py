"""torchvision's networks with fewer blocks and filters: the same names and kinds of layers."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2


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


def narrow(block: type[nn.Module], blocks: list[int], num_classes: int) -> nn.Module:
    """A ResNet of so many blocks a stage, a quarter as wide."""
    model = NarrowResNet(block, blocks)
    model.fc = nn.Linear(model.inplanes, num_classes)
    return model


def basic(num_classes: int) -> nn.Module:
    """ResNet-18 and -34."""
    return narrow(BasicBlock, [2, 1, 1, 2], num_classes)


def bottlenecks(num_classes: int) -> nn.Module:
    """ResNet-50 and -101, a quarter as wide again between blocks."""
    return narrow(NarrowBottleneck, [2, 1, 1, 1], num_classes)


def dense(num_classes: int) -> nn.Module:
    """DenseNet-121 to -201."""
    return DenseNet(16, (3, 2, 2, 2), num_init_features=32, num_classes=num_classes)


def _regnet(se_ratio: float | None = None) -> nn.Module:
    return RegNet(
        BlockParams(
            depths=[1, 1, 2, 1],
            widths=[16, 32, 48, 96],
            group_widths=[16] * 4,
            bottleneck_multipliers=[1.0] * 4,
            strides=[2] * 4,
            se_ratio=se_ratio,
        )
    )


def _efficientnet() -> nn.Module:
    stages = (
        (1, 3, 1, 32, 16, 1),
        (6, 3, 2, 16, 24, 2),
        (6, 5, 2, 24, 40, 2),
        (6, 3, 2, 40, 80, 1),
    )
    return EfficientNet([MBConvConfig(*stage) for stage in stages], dropout=0.2)


def _convnext() -> nn.Module:
    stages = ((32, 64, 1), (64, 96, 1), (96, 128, 2), (128, None, 1))
    return ConvNeXt([CNBlockConfig(*stage) for stage in stages])


def _mobilenet_v2() -> nn.Module:
    return MobileNetV2(
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 1]]
    )


def _mobilenet_v3() -> nn.Module:
    stages = (
        (16, 3, 16, 16, True, "RE", 2, 1),
        (16, 3, 72, 24, False, "RE", 2, 1),
        (24, 3, 88, 24, False, "RE", 1, 1),
        (24, 5, 96, 40, True, "HS", 2, 1),
        (40, 5, 120, 40, True, "HS", 1, 1),
    )
    return MobileNetV3([InvertedResidualConfig(*stage, width_mult=1.0) for stage in stages], 256)


#: Those of torchvision that take long, by the names of the whole ones.
SHORT_NETS = {
    "resnet18": partial(basic, 1000),
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_small": _mobilenet_v3,
    "shufflenet_v2_x0_5": partial(ShuffleNetV2, [2, 2, 2], [24, 48, 96, 192, 1024]),
    "resnext50_32x4d": lambda: ResNet(Bottleneck, [1, 2, 1, 1], groups=32, width_per_group=4),
    "densenet121": partial(DenseNet, 32, (3, 2, 2, 2)),
    "regnet_x_400mf": _regnet,
    "regnet_y_400mf": partial(_regnet, 0.25),
    "efficientnet_b0": _efficientnet,
    "convnext_tiny": _convnext,
}
