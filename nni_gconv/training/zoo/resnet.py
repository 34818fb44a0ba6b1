"""CIFAR ResNets of basic blocks.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2. Depth
6n+2, three stages of n blocks with 16, 32 and 64 channels. Where a stage begins, the shortcut is
either option A (every second row and column, zero channels before and behind; no parameters) or
option B (1x1 convolution and batch norm); names that end in "b" have option B.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nni_gconv.errors import ConfigError, unknown_name

from .common import check_depth, init_weights, scaled
from .registry import register_model


def _shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build the path around a block; plain torch modules, so that channels can be cut later."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "A":
        # AvgPool2d(1, stride) is x[:, :, ::stride, ::stride]; ZeroPad3d takes (N, C, H, W) for
        # (C, D, H, W) of one sample and so pads the channels.
        before = (out_channels - in_channels) // 2
        behind = out_channels - in_channels - before
        return nn.Sequential(
            nn.AvgPool2d(1, stride=stride), nn.ZeroPad3d((0, 0, 0, 0, before, behind))
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)
        # Not in place: a hook that looks at a batch norm's output must see that output.
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """The network; see :func:`resnet` for its arguments."""

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: Literal["A", "B"] = "A",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        blocks = check_depth("resnet", depth, step=6, offset=2)
        if shortcut not in ("A", "B"):
            raise ConfigError(
                unknown_name("shortcut", shortcut, ["A", "B"], "model.options.shortcut")
            )
        base = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(base, base, blocks, 1, shortcut)
        self.layer2 = self._stage(base, 2 * base, blocks, 2, shortcut)
        self.layer3 = self._stage(2 * base, 4 * base, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * base, num_classes)
        init_weights(self)

    @staticmethod
    def _stage(inside: int, outside: int, blocks: int, stride: int, kind: str) -> nn.Sequential:
        first = BasicBlock(inside, outside, stride, kind)
        return nn.Sequential(
            first, *(BasicBlock(outside, outside, 1, kind) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


@register_model
def resnet(
    depth: int = 20,
    num_classes: int = 10,
    in_channels: int = 3,
    shortcut: Literal["A", "B"] = "A",
    width: float = 1.0,
) -> ResNet:
    """Build a CIFAR ResNet of any depth; registered as ``resnet`` and for the usual depths.

    Parameters
    ----------
    depth : int, default 20
        6n+2; 8 is the smallest.
    num_classes : int, default 10
        Length of the output.
    in_channels : int, default 3
        Channels of the input. Any height and width from 1 on works; four and more are sensible.
    shortcut : {"A", "B"}, default "A"
        Option A has no parameters; option B is a 1x1 convolution and batch norm.
    width : float, default 1.0
        Multiplier of the 16 channels of the first stage; the others have two and four times those.

    Returns
    -------
    ResNet
        Keys of its state dict: ``conv1``, ``bn1``, ``layer{1,2,3}.{block}.{conv1,bn1,conv2,bn2}``,
        with option B also ``layer{2,3}.0.shortcut.{0,1}``, and ``linear``.

    Examples
    --------
    >>> import torch
    >>> resnet(depth=8, width=0.5)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """
    return ResNet(depth, num_classes, in_channels, shortcut, width)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register_model(f"resnet{_depth}")(partial(resnet, depth=_depth))
    register_model(f"resnet{_depth}b")(partial(resnet, depth=_depth, shortcut="B"))
