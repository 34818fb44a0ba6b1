"""Any network with group convolutions in it from the start.

Two forms of a k x k convolution of C channels and F filters:

* ``grouped``: the same with G groups, F*C/G kernels. Of 1x1 convolutions this is what grouped
  MobileNets have.
* ``separable``: a k x k convolution of C to C channels in G groups, then a 1x1 convolution of C to
  F (Peng et al., "Extreme Network Compression via Filter Group Approximation", ECCV 2018,
  https://arxiv.org/abs/1807.11254; depthwise separable for G = C). A 1x1 convolution has nothing
  to separate and is grouped.

>>> from nni_gconv.training.zoo import create_model
>>> model = create_model("resnet8", group_config={"layer1.0.conv1": 16}, group_form="separable")
>>> model.layer1[0].conv1.spatial.groups
16
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.groupconv import (
    check_groups,
    conv_like,
    groups_of,
    read_group_config,
    replace_layers,
)

FORMS = ("grouped", "separable")


def with_groups(
    model: nn.Module, groups: str | Path | Mapping[str, int], form: str = "grouped"
) -> nn.Module:
    """Split a network's convolutions in groups, in place.

    New weights come from those of the network. Grouped: the blocks on the diagonal, times sqrt(G),
    so that freshly drawn weights keep the scale of their outputs (of a trained network little is
    left: prune it with :class:`nni_gconv.GroupConvPruner` instead). Separable: of all pairs of
    layers of that form the one nearest to the layer (least squares, by a singular value
    decomposition of each group's kernels).

    Parameters
    ----------
    model : nn.Module
        A dense network; changed.
    groups : path or mapping of str to int
        A group configuration (:mod:`nni_gconv.groupconv.config`) or layer -> G; layers of
        G = 1 and those not named stay as they are. Groups that a layer has are split further in
        the grouped form.
    form : {"grouped", "separable"}, default "grouped"
        See above.

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    ConfigError
        Unknown form, or a configuration that does not fit the network or the form.

    Examples
    --------
    >>> net = with_groups(nn.Sequential(nn.Conv2d(8, 16, 3, bias=False)), {"0": 8}, "separable")
    >>> [tuple(p.shape) for p in net.parameters()]
    [(8, 1, 3, 3), (16, 8, 1, 1)]
    """
    if form not in FORMS:
        raise ConfigError(unknown_name("form", form, FORMS, "model.options.group_form"))
    if isinstance(groups, Mapping):
        counts = check_groups(groups, model, "model.options.group_config")
    else:
        counts = read_group_config(groups, model)
    new: dict[nn.Module, nn.Module] = {}
    for name, count in counts.items():
        layer: Any = model.get_submodule(name)
        if count > groups_of(layer):
            pointwise = all(size == 1 for size in layer.kernel_size)
            grouped = form == "grouped" or pointwise
            if not grouped and layer.groups > 1:
                raise ConfigError(
                    f"model.options.group_config: {name} has {layer.groups} groups already, which "
                    "the separable form has no place for; give it group_form: grouped"
                )
            new[layer] = (_grouped if grouped else _separable)(layer, count)
    replace_layers(model, new)
    return model


@torch.no_grad()
def _grouped(layer: Any, groups: int) -> nn.Module:
    conv = conv_like(layer, groups)
    rows, columns = layer.out_channels // groups, layer.in_channels // groups
    parts = groups // layer.groups
    for g in range(groups):
        own, first = slice(g * rows, (g + 1) * rows), g % parts * columns
        conv.weight[own] = layer.weight[own, first : first + columns] * parts**0.5
    if layer.bias is not None:
        conv.bias.copy_(layer.bias)
    return conv


@torch.no_grad()
def _separable(layer: Any, groups: int) -> nn.Module:
    spatial = conv_like(layer, groups, out_channels=layer.in_channels, bias=False)
    ones = dict.fromkeys(("kernel_size", "stride", "dilation"), 1)
    pointwise = conv_like(layer, padding=0, padding_mode="zeros", **ones)
    pointwise.weight.zero_()
    size = layer.in_channels // groups
    for first in range(0, layer.in_channels, size):
        # F x (C/G * k * k) = (F x C/G) (C/G x C/G * k * k), both factors of equal scale.
        kernels = layer.weight[:, first : first + size].flatten(1)
        left, values, right = torch.linalg.svd(kernels, full_matrices=False)
        rank = min(size, len(values))
        root, own = values[:rank].sqrt(), slice(first, first + rank)
        spatial.weight.flatten(1)[own] = root[:, None] * right[:rank]
        pointwise.weight.flatten(1)[:, own] = left[:, :rank] * root
    if layer.bias is not None:
        pointwise.bias.copy_(layer.bias)
    return nn.Sequential(OrderedDict(spatial=spatial, pointwise=pointwise)).train(layer.training)
