"""Residual blocks that add nothing: what is left of them is what lies beside the dead branch.

``relu(branch(x) + shortcut(x))`` is ``relu(shortcut(x))`` once everything in the branch is masked.
The forward of such a block would go on calling the layers of its branch, and a layer has to keep a
channel. So the block as a whole is exchanged (:mod:`nni_gconv.speedup.residual`), and the rest of
the model calls what took its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.recorder import op_name, shape_of
from nni_gconv.graph.rules import PASSES, written_by
from nni_gconv.graph.trace import Graph

#: Operator -> the step it is as a module; no module of a block can have a dot in its name.
ACTIVATIONS = {
    "relu": "nn.ReLU",
    "relu6": "nn.ReLU6",
    "silu": "nn.SiLU",
    "hardswish": "nn.Hardswish",
    "gelu": "nn.GELU",
}


@dataclass(frozen=True)
class Branch:
    """What a block adds to something else.

    Attributes
    ----------
    block : str
        Dotted name of the module whose forward holds the addition.
    addition, value : Node
        The addition, and which of its operands the branch makes.
    layers : tuple of str
        Dotted names of the modules that make it, in the order they run.
    end : str
        Dotted name of the last of them with parameters; masked whole, the branch is zero.
    steps : tuple of str
        What is left of the block without it, see
        :func:`nni_gconv.speedup.residual.take_out`.
    """

    block: str
    addition: Node
    value: Node
    layers: tuple[str, ...]
    end: str
    steps: tuple[str, ...]


def find_branches(graph: Graph) -> list[Branch]:
    """Find the branches whose blocks could do without them.

    Examples
    --------
    >>> import torch
    >>> from torchvision.models import resnet18
    >>> from nni_gconv.graph.trace import trace
    >>> found = find_branches(trace(resnet18(), torch.zeros(1, 3, 32, 32)))
    >>> [(b.block, b.end, b.steps) for b in found][:2]
    [('layer1.0', 'layer1.0.bn2', ('nn.ReLU',)), ('layer1.1', 'layer1.1.bn2', ('nn.ReLU',))]
    """
    found = []
    for block in _blocks(graph):
        for addition in block.additions:
            operands: list[Any] = list(addition.args[:2])
            for dead, alive in (operands, reversed(operands)):
                end = _end(graph, dead)
                steps = block.remaining({addition: alive}.get) if end else None
                if steps is None:
                    continue
                layers = block.layers(dead)
                if end in layers:
                    found.append(Branch(block.name, addition, dead, layers, end, steps))
    return found


def vanishing(graph: Graph, operands: Mapping[Node, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
    """Find the blocks whose branches are zero.

    Parameters
    ----------
    graph : Graph
        The traced model.
    operands : mapping of Node to sequence of Tensor or None
        What is certain of the operands of each addition, from
        :func:`nni_gconv.graph.constants.known_operands`.

    Returns
    -------
    dict of str to tuple of str
        Block -> what is left of it. None inside another.
    """

    def alive(addition: Node) -> Any:
        first, second = operands.get(addition, (None, None))
        if _is_zero(second):
            return addition.args[0]
        return addition.args[1] if _is_zero(first) else None

    found: dict[str, tuple[str, ...]] = {}
    for block in _blocks(graph):
        if any(map(alive, block.additions)):
            steps = block.remaining(alive)
            if steps is not None and not any(_is_inside(block.name, outer) for outer in found):
                found[block.name] = steps
    return found


def _is_zero(value: Any) -> bool:
    return isinstance(value, Tensor) and bool((value == 0).all())


class _Block:
    """The operators of one module and all inside it."""

    def __init__(self, graph: Graph, name: str, nodes: Sequence[Node]) -> None:
        self.graph, self.name = graph, name
        self.nodes = dict.fromkeys(nodes)
        self.additions = [
            node
            for node in nodes
            if graph.owner(node) == name and op_name(node) == "add" and _adds_alike(node)
        ]

    def remaining(self, alive: Callable[[Node], Node | None]) -> tuple[str, ...] | None:
        """List what acts on the block's input when additions pass one operand on; None: cannot.

        `alive` says which operand of an addition it is, None if it is a sum indeed.
        """
        entered = _read_from_outside(self.nodes, self.graph)
        results = _read_outside(self.nodes)
        if len(entered) != 1 or len(results) != 1 or not self._runs_once():
            return None
        node, summed, steps = results[0], False, []
        while node is not entered[0]:
            if node not in self.nodes:
                return None
            kept = alive(node) if node in self.additions else None
            if kept is not None:
                node, summed = kept, True
            elif op_name(node) in ACTIVATIONS and len(node.args) == 1 and not node.kwargs:
                steps.append(ACTIVATIONS[op_name(node)])
                node = node.args[0]  # type: ignore[assignment]
            else:
                child = self._child(node)
                if child is None:
                    return None
                steps.append(child[0])
                node = child[1]
        if not summed or (not steps and any(map(self._is_written, (results[0], entered[0])))):
            return None  # a sum is another tensor than the block's input, to which one may write
        return tuple(reversed(steps))

    def layers(self, value: Node) -> tuple[str, ...]:
        """Modules inside the block that make a value from its input."""
        seen: dict[Node, None] = {}
        waiting = [value]
        while waiting:
            node = waiting.pop()
            if node in self.nodes and node not in seen:
                seen[node] = None
                waiting += node.all_input_nodes
        owners = (self.graph.owner(node) for node in self.nodes if node in seen)
        return tuple(dict.fromkeys(owner for owner in owners if owner != self.name))

    def _child(self, node: Node) -> tuple[str, Node] | None:
        """Child module whose result a node is, and what it was called on."""
        inner = self.graph.owner(node).removeprefix(self.name).lstrip(".").partition(".")[0]
        if not inner:
            return None
        path = f"{self.name}.{inner}"
        nodes = [n for n in self.nodes if _is_inside(self.graph.owner(n), path)]
        entered, results = _read_from_outside(nodes, self.graph), _read_outside(nodes)
        if results != [node] or len(entered) != 1 or path not in self.graph.modules:
            return None
        return inner, entered[0]

    def _is_written(self, value: Node) -> bool:
        users = (user for user in value.users if user not in self.nodes)
        return any(value is target for user in users for target in written_by(user))

    def _runs_once(self) -> bool:
        weights = {p for n in self.nodes for p in n.all_input_nodes if p.name in self.graph.tensors}
        return all(len(weight.users) == 1 for weight in weights)


def _blocks(graph: Graph) -> Iterator[_Block]:
    """Modules whose forward adds, outermost first."""
    if graph.training:
        return
    operators = [node for node in graph.nodes if node.op == "call_function"]
    adding = {graph.owner(node) for node in operators if op_name(node) == "add"} - {""}
    inside: dict[str, list[Node]] = {name: [] for name in graph.modules if name in adding}
    for node in operators:
        parts = graph.owner(node).split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if name in inside:
                inside[name].append(node)
    for name, nodes in inside.items():
        module = graph.modules[name]
        if not module._forward_hooks and not module._forward_pre_hooks:
            yield _Block(graph, name, nodes)


def _is_inside(owner: str, name: str) -> bool:
    return owner == name or owner.startswith(f"{name}.")


def _adds_alike(node: Node) -> bool:
    operands = node.args[:2]
    alike = all(isinstance(x, Node) and shape_of(x) == shape_of(node) for x in operands)
    return len(operands) == 2 and alike and "alpha" not in node.kwargs


def _read_from_outside(nodes: Any, graph: Graph) -> list[Node]:
    inside = set(nodes)
    read = (x for node in nodes for x in node.all_input_nodes)
    return list(dict.fromkeys(x for x in read if x not in inside and x.name not in graph.tensors))


def _read_outside(nodes: Any) -> list[Node]:
    inside = set(nodes)
    return [node for node in nodes if any(user not in inside for user in node.users)]


def _end(graph: Graph, value: Any) -> str:
    """Name the layer whose bias and scale decide over a whole value; empty: there is none."""
    while isinstance(value, Node) and op_name(value) in PASSES:
        value = value.args[0]
    name = op_name(value) if isinstance(value, Node) and value.op == "call_function" else ""
    if not (name.startswith("conv") or name in ("linear", "batch_norm")):
        return ""
    owner = graph.owner(value)
    own = dict(graph.modules[owner].named_parameters(recurse=False))
    return owner if "weight" in own and (name != "batch_norm" or "bias" in own) else ""
