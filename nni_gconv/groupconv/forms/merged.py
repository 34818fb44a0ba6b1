"""A grouped convolution with neighbouring groups merged: fewer groups, zeros between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nni_gconv.groupconv.layers import conv_like


def merge_groups(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """Return the weight of the same convolution with fewer groups.

    Parameters
    ----------
    weight : Tensor
        (F, C / groups, ...).
    groups, fewer : int
        G now and then; `fewer` divides `groups`.

    Returns
    -------
    Tensor
        (F, C / fewer, ...), block-diagonal within each of the new groups.

    Examples
    --------
    >>> merge_groups(torch.ones(4, 1), 4, 2)
    tensor([[1., 0.],
            [0., 1.],
            [1., 0.],
            [0., 1.]])
    """
    if fewer == groups:
        return weight
    blocks = weight.reshape(fewer, groups // fewer, weight.shape[0] // groups, *weight.shape[1:])
    merged = weight.new_zeros(
        *blocks.shape[:3], groups // fewer, *weight.shape[1:]
    )  # new group, block, filter, block of columns, column, ...
    for block in range(groups // fewer):
        merged[:, block, :, block] = blocks[:, block]
    return merged.reshape(weight.shape[0], -1, *weight.shape[2:])


def merged_conv(layer: nn.Module, groups: int) -> nn.Conv2d:
    """Return the same convolution with fewer groups, as a plain layer of torch."""
    made = conv_like(layer, groups)
    with torch.no_grad():
        made.weight.copy_(merge_groups(layer.weight, layer.groups, groups))  # type: ignore[arg-type]
        if made.bias is not None:
            made.bias.copy_(layer.bias)
    return made


def absorb_gathers(
    layer: nn.Conv2d, gather_in: Sequence[int] | None, gather_out: Sequence[int] | None
) -> nn.Conv2d:
    """Return a dense convolution that does the gathers around it too, in its rows and columns.

    Parameters
    ----------
    layer : nn.Conv2d
        Of one group.
    gather_in : sequence of int, optional
        A permutation.
    gather_out : sequence of int, optional
        Any selection of the outputs.
    """
    weight, bias = layer.weight.detach(), layer.bias
    if gather_in is not None:
        weight = weight[:, torch.tensor(gather_in).argsort()]
    if gather_out is not None:
        rows = torch.tensor(gather_out)
        weight = weight[rows]
        bias = None if bias is None else bias[rows]
    made = conv_like(layer, 1, out_channels=len(weight))
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made
