"""A convolution whose weights lie as oneDNN wants them; torch else rearranges them in each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.groupconv.layers import conv_like


class PackedConv2d(nn.Conv2d):
    """``nn.Conv2d`` for inference on a CPU in float32; anywhere else it is just that.

    The packed weights are made in the first call and no part of the state; they are made anew when
    the weights have changed.
    """

    _packed: tuple[Any, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        if not compat.can_run_packed(input, self.weight):
            return super().forward(input)
        key = self.weight.data_ptr(), self.weight._version
        if self._packed is None or self._packed[0] != key:
            self._packed = key, compat.pack_convolution(self, input.shape)
        return compat.run_packed(self, self._packed[1], input)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # can be neither copied nor written


def packed_conv(layer: nn.Conv2d) -> PackedConv2d:
    """Return a convolution with the same weights that packs them."""
    plain = conv_like(layer, layer.groups)
    made = PackedConv2d.__new__(PackedConv2d)
    made.__dict__.update(plain.__dict__)
    with torch.no_grad():
        made.weight.copy_(layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return made
