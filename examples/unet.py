"""Segmentation: a small U-Net, whose skip connections concatenate channels of both halves."""

import torch
from torch import nn

from nni_gconv import shrink


def block(inside, outside):
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.down1, self.down2, self.middle = block(3, 16), block(16, 32), block(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge2, self.merge1 = block(64, 32), block(32, 16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        x = self.middle(nn.functional.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(x), second], 1))
        x = self.merge1(torch.cat([self.up1(x), first], 1))
        return self.head(x)


torch.manual_seed(0)
model, images = UNet().eval(), torch.randn(24, 3, 32, 32)
small, report = shrink(model, images[:1], macs=0.5, calibration=images)
print(report)
assert small(images[:2]).shape == (2, 3, 32, 32)
