"""A grouped 1x1 convolution as batched matrix products, one a group."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MatmulConv2d(nn.Module):
    """Matrix products of (F / G, C / G) weights with the pixels of each group's channels.

    Parameters
    ----------
    layer : nn.Conv2d
        A convolution of 1x1 without padding; its weights are copied.
    channels_last : bool
        The output's memory format, and the input's for which it is quick.
    """

    def __init__(self, layer: nn.Conv2d, channels_last: bool) -> None:
        super().__init__()
        groups = layer.groups
        weight = layer.weight.detach().flatten(1).unflatten(0, (groups, -1))
        self.weight = nn.Parameter(
            weight.mT.clone() if channels_last else weight.clone(), requires_grad=False
        )
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.stride: tuple[int, ...] = layer.stride
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        """Multiply; images may come without a batch."""
        if input.dim() == 3:
            return self(input.unsqueeze(0)).squeeze(0)
        input = input[:, :, :: self.stride[0], :: self.stride[1]]
        return self._by_pixel(input) if self.channels_last else self._by_channel(input)

    def _by_channel(self, input: Tensor) -> Tensor:
        batch, _, height, width = input.shape
        pixels = input.reshape(batch, len(self.weight), -1, height * width)
        output = torch.matmul(self.weight, pixels).reshape(batch, -1, height, width)
        return output if self.bias is None else output.add_(self.bias[:, None, None])

    def _by_pixel(self, input: Tensor) -> Tensor:
        batch, channels, height, width = input.shape
        groups = len(self.weight)
        pixels = input.permute(0, 2, 3, 1).reshape(-1, groups, channels // groups)
        output = torch.bmm(pixels.transpose(0, 1), self.weight).transpose(0, 1).flatten(1)
        if self.bias is not None:
            output = output.add_(self.bias)
        return output.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
