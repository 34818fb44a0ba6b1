"""Constants that go with a channel, folded into the biases of the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph.channels import ChannelMap, Read, lookup
from nni_gconv.graph.rules import argument, has_padding
from nni_gconv.graph.trace import Graph

__all__ = ["foldable", "shift_bias", "shifts"]


def foldable(
    graph: Graph, channels: ChannelMap, reading: Read, given: Mapping[Node, Tensor]
) -> Tensor:
    """Tell for each channel a layer reads whether its bias can take what the channel gives.

    Zero padding shows the border of a constant, a transposed convolution overlaps unevenly, and a
    layer that is called twice has one bias for both calls: there only silence can go.

    Returns
    -------
    Tensor of bool, shape (channels,)
    """
    known = ~given[reading.node].isnan()
    layer = _bias_owner(graph, reading)
    padded = "conv" in str(reading.node.target) and has_padding(reading.node)
    if layer is None or padded or reading.groups > 1 or reading.transposed:
        return torch.zeros_like(known)
    module = graph.modules[layer]
    for other in channels.reads:
        if other.node is not reading.node and graph.modules.get(graph.owner(other.node)) is module:
            known = known & (given[other.node] == given[reading.node])
    return known


def _bias_owner(graph: Graph, reading: Read) -> str | None:
    """Return the module whose bias the reading layer adds, if there is one of its own."""
    name = graph.owner(reading.node)
    module = graph.modules.get(name)
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return None
    if f"{name}.weight".lstrip(".") not in graph.aliases[reading.weight]:
        return None
    bias = argument(reading.node, 2, "bias")
    if bias is None or module.bias is None:
        return name if bias is None and module.bias is None else None
    aliases = graph.aliases.get(graph.tensors.get(bias.name, ""), ())
    owners = {id(graph.modules[alias.rpartition(".")[0]]) for alias in aliases}
    return name if owners == {id(module)} else None


def shifts(
    graph: Graph,
    channels: ChannelMap,
    kept: Mapping[str, Tensor],
    removed: np.ndarray,
    given: Mapping[Node, Tensor],
) -> dict[str, list[float]]:
    """Find what layers have to add to their biases for constants other than zero that go.

    Returns
    -------
    dict of str to list of float
        Dotted name of a layer -> one number for each of its filters.
    """
    found: dict[str, list[float]] = {}
    for reading in channels.reads:
        of = channels.of(reading.labels)
        gone = torch.from_numpy(removed[of])
        constant = torch.where(gone, given[reading.node].nan_to_num(nan=0.0), 0.0)
        layer = _bias_owner(graph, reading)
        if layer is None or reading.groups > 1 or reading.transposed:
            continue  # what went here is silent or not read
        if not bool((constant != 0).any()):
            continue
        weight = lookup(graph, reading.weight).detach().to("cpu", torch.float64)
        name = graph.aliases[reading.weight][0]
        if name in kept:
            weight = weight * kept[name]
        sums = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        # A second call of the layer gives the same, see foldable().
        found[layer] = (sums @ constant).tolist()
    return found


def shift_bias(module: nn.Module, shift: list[float]) -> None:
    """Add to the bias of a layer, which gets one if it has none."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    added = torch.tensor(shift, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        if module.bias is None:
            module.bias = nn.Parameter(added, requires_grad=weight.requires_grad)
        else:
            module.bias += added  # type: ignore[operator]
