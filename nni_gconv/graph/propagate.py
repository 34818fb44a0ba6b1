"""Following channels through a model: every operator's rule in turn.

An operator without a rule is opaque: the channels it reads keep their width, and the user is told
which operator on which line it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch.fx import Node

from nni_gconv.graph.channel_map import ChannelMap
from nni_gconv.graph.channels import Walker
from nni_gconv.graph.rules import channel_rule_of
from nni_gconv.graph.trace import Graph


def map_channels(
    graph: Graph,
    *,
    tie: Iterable[tuple[str, str]] = (),
    pin: Iterable[tuple[Node, str]] = (),
    sizes_agree: bool = False,
) -> ChannelMap:
    """Follow the channels of a traced model.

    Parameters
    ----------
    graph : Graph
        From :func:`nni_gconv.graph.trace.trace`.
    tie : iterable of (str, str)
        Names of weights whose rows shall be removed together although the graph does not ask it.
    pin : iterable of (Node, str)
        Operators whose inputs must keep their width, with the reason.
    sizes_agree : bool, default False
        Channels of two tensors go together where a view of the one asks for a size of the other.
        Masks that are given may have as many of both go without that.

    Returns
    -------
    ChannelMap

    Examples
    --------
    >>> import torch
    >>> from nni_gconv.graph.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    >>> channels = map_channels(trace(net, torch.zeros(1, 3, 8, 8)))
    >>> rows = channels.axes["0.weight", 0].labels
    >>> columns = channels.axes["1.weight", 1].labels
    >>> bool((channels.of(rows) == channels.of(columns)).all())
    True
    """
    pins, tied = dict(pin), list(tie)
    walker = _walk(graph, tied, pins, sizes_agree, frozenset())
    found = walker.result()
    held = {n for n, labels in walker.folds.items() if _pinned(found, found.of(labels)) > 0}
    if not held:
        return found
    # Parts that cannot become narrower may go as a whole: heads of an attention.
    other = _walk(graph, tied, pins, sizes_agree, frozenset(held)).result()
    return other if _pinned(other) < _pinned(found) else found


def _pinned(channels: ChannelMap, of: np.ndarray | None = None) -> int:
    """Count the channels that stay whatever is masked."""
    return int(np.isin(channels.classes if of is None else of, list(channels.pinned)).sum())


def _walk(
    graph: Graph,
    tie: Iterable[tuple[str, str]],
    pins: Mapping[Node, str],
    sizes_agree: bool,
    whole: frozenset[Node],
) -> Walker:
    walker = Walker(graph, sizes_agree=sizes_agree, whole=whole)
    for node in graph.all_nodes:
        if node in pins:
            walker.pin_inputs(node, pins[node])
            walker.pinned_nodes.add(node)
        if node.op == "output":
            walker.pin_inputs(node, "an output of the model")
        elif node.op == "call_function":
            walker.values[node] = channel_rule_of(node)(walker, node)
        elif node.op != "placeholder":
            walker.values[node] = walker.opaque(node)
    for first, second in tie:
        walker.equal(walker.axis(first, 0, "row"), walker.axis(second, 0, "row"))
    return walker
