"""Making layers with other group counts, and putting them in place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def conv_like(layer: nn.Module, groups: int = 1, **changes: Any) -> Any:
    """Return a fresh convolution with the settings of another; torch's random state stays.

    Parameters
    ----------
    layer : nn.Module
        A convolution of one, two or three dimensions.
    groups : int, default 1
        G of the new one.
    **changes
        Arguments of the constructor that differ.

    Returns
    -------
    nn.Conv1d, nn.Conv2d or nn.Conv3d
        On the same device, of the same type, in the same mode.

    Examples
    --------
    >>> conv_like(nn.Conv2d(8, 16, 3, stride=2), 4, bias=False)
    Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), groups=4, bias=False)
    """
    source: Any = layer
    kind = next(k for k in CONVOLUTIONS if isinstance(layer, k))
    settings: dict[str, Any] = {
        "in_channels": source.in_channels,
        "out_channels": source.out_channels,
        "kernel_size": source.kernel_size,
        "stride": source.stride,
        "padding": source.padding,
        "dilation": source.dilation,
        "padding_mode": source.padding_mode,
        "bias": source.bias is not None,
        "device": source.weight.device,
        "dtype": source.weight.dtype,
        **changes,
    }
    with torch.random.fork_rng([source.weight.device] if source.weight.is_cuda else []):
        return kind(groups=groups, **settings).train(layer.training)


def replace_layers(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put new layers in place of a model's own, in place and under all their names.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> replace_layers(model, {model[0]: nn.Identity()})
    >>> model[0]
    Identity()
    """
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in new:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, new[layer])
