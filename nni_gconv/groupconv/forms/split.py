"""A grouped convolution as one dense convolution for each group."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nni_gconv.groupconv.layers import conv_like


class SplitConv2d(nn.Module):
    """Convolutions side by side, each on its share of the channels (dimension -3)."""

    def __init__(self, parts: list[nn.Conv2d]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        shares = input.chunk(len(self.parts), -3)
        return torch.cat([part(share) for part, share in zip(self.parts, shares, strict=True)], -3)


def split_conv(layer: nn.Conv2d) -> SplitConv2d:
    """Return the same convolution, group by group."""
    groups = layer.groups
    weights = layer.weight.chunk(groups)
    biases = [None] * groups if layer.bias is None else layer.bias.chunk(groups)
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        part = conv_like(layer, in_channels=layer.in_channels // groups, out_channels=len(weight))
        with torch.no_grad():
            part.weight.copy_(weight)
            if bias is not None:
                part.bias.copy_(bias)
        parts.append(part)
    return SplitConv2d(parts)
