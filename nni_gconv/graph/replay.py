"""A traced forward run again on real tensors, with several sets of parameters side by side.

What a layer of the small network should say is known where the dense network says it, so both are
run at once, operator by operator, and one may look at both, and change the parameters of the one,
before the next operator runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from nni_gconv.graph.recorder import shape_of
from nni_gconv.graph.trace import Graph

#: Node -> what it came to, one for each set of parameters.
Values = dict[Node, Any]
Visit = Callable[[Sequence[Values]], None]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers as they are, each under its first name: for :class:`Replay`."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items()}


class Replay:
    """Run the operators of a graph.

    Parameters
    ----------
    graph : Graph
        Traced with inputs of the shape that :meth:`run` is given: sizes are written in it.

    Examples
    --------
    >>> from nni_gconv.graph import trace
    >>> net = torch.nn.Linear(3, 2).eval()
    >>> x = torch.ones(4, 3)
    >>> [(out,)] = Replay(trace(net, x)).run([dict(net.named_parameters())], [x])
    >>> torch.equal(out, net(x))
    True
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        last: dict[Node, int] = {}
        for place, node in enumerate(graph.nodes):
            last.update(dict.fromkeys(node.all_input_nodes, place))
        self._done: dict[int, list[Node]] = {}
        for node, place in last.items():
            self._done.setdefault(place, []).append(node)

    @torch.no_grad()
    def run(
        self,
        versions: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[Tensor],
        at: Mapping[Node, Visit] | None = None,
        *,
        until: Node | None = None,
    ) -> list[tuple[Any, ...]]:
        """Run all versions, operator by operator.

        Parameters
        ----------
        versions : sequence of mappings of str to Tensor
            Parameters and buffers by dotted name; a forward that writes to a buffer writes to it.
        inputs : sequence of Tensor
            The tensors among the arguments of the forward, the same for all versions.
        at : mapping of Node to callable, optional
            Called with the values of all versions once the first of them has run this operator
            and the others have not yet.
        until : Node, optional
            The last operator to run.

        Returns
        -------
        list of tuple
            What the forward returns, for each version; empty with `until`.
        """
        values = [self._begin(version, inputs) for version in versions]
        for place, node in enumerate(self.graph.nodes):
            if node.op == "output":
                results: Any = node.args[0]
                return [tuple(map_arg(results, known.__getitem__)) for known in values]
            if node.op != "call_function":
                continue
            for number, known in enumerate(values):
                if number == 1 and at and node in at:
                    at[node](values)
                operator: Any = node.target
                known[node] = operator(
                    *map_arg(node.args, known.__getitem__),
                    **map_arg(node.kwargs, known.__getitem__),
                )
            if len(values) == 1 and at and node in at:
                at[node](values)
            if node is until:
                return []
            for done in self._done.get(place, ()):
                if done.op != "placeholder":
                    for known in values:
                        del known[done]
        return []

    def _begin(self, version: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Values:
        known: Values = dict(self.graph.constants)
        known.update(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in self.graph.tensors:
                known[node] = version[self.graph.tensors[node.name]]
        return known

    def most_elements(self) -> int:
        """Count the numbers that the values of one version hold at most at a time."""
        alive, most = 0, 0
        for place, node in enumerate(self.graph.nodes):
            if node.op == "call_function":
                alive += _elements(node)
                most = max(most, alive)
            for done in self._done.get(place, ()):
                if done.op == "call_function":
                    alive -= _elements(done)
        return most


def _elements(node: Node) -> int:
    return int(torch.Size(shape_of(node)).numel()) if shape_of(node) else 0
