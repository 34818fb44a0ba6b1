"""Constants that go with a channel, folded into the biases of the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.graph import ChannelMap, Graph, bias_owner


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
        layer = bias_owner(graph, reading)
        if layer is None or reading.groups > 1 or reading.transposed:
            continue  # what went here is zero or not read
        if not bool((constant != 0).any()):
            continue
        weight = graph.lookup(reading.weight).detach().to("cpu", torch.float64)
        name = graph.aliases[reading.weight][0]
        if name in kept:
            weight = weight * kept[name]
        sums = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        # A second call of the layer gives the same, see nni_gconv.graph.liveness.foldable.
        found[layer] = (sums @ constant).tolist()
    return found


def shift_bias(module: nn.Module, shift: list[float]) -> None:
    """Add to the bias of a layer, which gets one if it has none."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    like = weight if bias is None else bias
    added = torch.tensor(shift, dtype=like.dtype, device=weight.device)
    with torch.no_grad():
        if bias is None:
            module.bias = nn.Parameter(added, requires_grad=weight.requires_grad)
        else:
            bias += added
