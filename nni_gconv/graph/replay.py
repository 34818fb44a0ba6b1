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

    def run(
        self,
        versions: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[Tensor],
        at: Mapping[Node, Visit] | None = None,
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

        Returns
        -------
        list of tuple
            What the forward returns, for each version.
        """
        return self.start(versions, inputs).go(at)

    def start(self, versions: Sequence[Mapping[str, Tensor]], inputs: Sequence[Tensor]) -> Run:
        """Begin a run that can be stopped between operators, and go on."""
        return Run(self, [self._begin(version, inputs) for version in versions])

    def read_last(self, place: int) -> Sequence[Node]:
        """Name what no operator behind this place reads."""
        return self._done.get(place, ())

    def _begin(self, version: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Values:
        known: Values = dict(self.graph.constants)
        known.update(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in self.graph.tensors:
                known[node] = version[self.graph.tensors[node.name]]
        return known

    def elements(self) -> dict[Node, int]:
        """Count the numbers that the values of one version hold while each operator runs."""
        alive, found = 0, {}
        for place, node in enumerate(self.graph.nodes):
            if node.op == "call_function":
                alive += _elements(node)
                found[node] = alive
            for done in self.read_last(place):
                if done.op == "call_function":
                    alive -= _elements(done)
        return found

    def most_elements(self) -> int:
        """Count the numbers that the values of one version hold at most at a time."""
        return max(self.elements().values(), default=0)


class Run:
    """A forward under way: what has been run, of which the values that are still read are held.

    Examples
    --------
    >>> from nni_gconv.graph import trace
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()).eval()
    >>> x, state = torch.ones(4, 3), state_of(net)
    >>> graph = trace(net, x)
    >>> run = Replay(graph).start([state], [x])
    >>> run.go(until=next(n for n in graph.nodes if "relu" in n.name))
    []
    >>> [(out,)] = run.go()
    >>> torch.equal(out, net(x))
    True
    """

    def __init__(self, replay: Replay, values: list[Values]) -> None:
        self._replay, self._values = replay, values
        self._nodes = list(replay.graph.nodes)
        self._place, self._met = 0, False

    def copy(self) -> Run:
        """Return a run that goes on from here by itself."""
        twin = Run(self._replay, [dict(known) for known in self._values])
        twin._place, twin._met = self._place, self._met
        return twin

    @torch.no_grad()
    def go(
        self, at: Mapping[Node, Visit] | None = None, until: Node | None = None
    ) -> list[tuple[Any, ...]]:
        """Go on.

        Parameters
        ----------
        at : mapping of Node to callable, optional
            See :meth:`Replay.run`.
        until : Node, optional
            Stop where the first version has run this operator, and the others have not yet.

        Returns
        -------
        list of tuple
            What the forward returns, for each version; empty with `until`.
        """
        while True:
            node = self._nodes[self._place]
            if node.op == "output":
                results: Any = node.args[0]
                return [tuple(map_arg(results, known.__getitem__)) for known in self._values]
            if node.op == "call_function":
                first, *others = self._values
                if not self._met:
                    _run(node, first)
                    if at and node in at:
                        at[node](self._values)
                    self._met = True
                    if node is until:
                        return []
                for known in others:
                    _run(node, known)
            for done in self._replay.read_last(self._place):
                if done.op != "placeholder":
                    for known in self._values:
                        del known[done]
            self._place, self._met = self._place + 1, False


def _run(node: Node, known: Values) -> None:
    operator: Any = node.target
    known[node] = operator(
        *map_arg(node.args, known.__getitem__), **map_arg(node.kwargs, known.__getitem__)
    )


def _elements(node: Node) -> int:
    return int(torch.Size(shape_of(node)).numel()) if shape_of(node) else 0
