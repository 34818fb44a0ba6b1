"""The backbone of a detector: its stages lose channels, those that the neck reads stay."""

import torch
from torch import nn
from torchvision.models import resnet18

from nni_gconv import shrink


class Backbone(nn.Module):
    """ResNet-18 that gives out the features of three stages, as a pyramid's neck reads them."""

    def __init__(self):
        super().__init__()
        net = resnet18()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        self.stages = nn.ModuleList([net.layer2, net.layer3, net.layer4])

    def forward(self, x):
        x, features = self.stem(x), {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            features[f"p{number + 3}"] = x
        return features


torch.manual_seed(0)
model, x = Backbone().eval(), torch.randn(1, 3, 64, 64)
small, report = shrink(model, x, macs=0.6)
print(report)
# What comes out is as wide as before: the neck and the heads need no change.
for name, feature in small(x).items():
    assert feature.shape == model(x)[name].shape
