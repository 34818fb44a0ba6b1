"""ResNets of ImageNet's widths for images of 32 x 32, as network slimming was tried on.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, with the stem of small
images: a 3x3 convolution of stride 1 and no pooling. torchvision's blocks, and so its names of
tensors; the counts are those that https://github.com/kuangliu/pytorch-cifar made usual.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from nni_gconv.errors import ConfigError

from .registry import register_model

_DEPTHS = (18, 34, 50, 101, 152)


def cifar_resnet(depth: int = 18, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build one; registered as ``cifar_resnet18``, 34, 50, 101 and 152.

    Parameters
    ----------
    depth : int, default 18
        18 and 34 have basic blocks, 50, 101 and 152 bottlenecks.
    num_classes : int, default 10
        Length of the output.
    in_channels : int, default 3
        Channels of the input.

    Examples
    --------
    >>> sum(p.numel() for p in cifar_resnet(18).parameters())
    11173962
    """
    from torchvision import models

    if depth not in _DEPTHS:
        raise ConfigError(
            f"model.options.depth: {depth!r} is not one of {', '.join(map(str, _DEPTHS))}"
        )
    model: Any = models.get_model(f"resnet{depth}", num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model  # type: ignore[no-any-return]


for _depth in _DEPTHS:
    register_model(f"cifar_resnet{_depth}")(partial(cifar_resnet, depth=_depth))
