"""Which layers of a traced network can be refitted, and where a constant of theirs can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph import Graph, Values, argument, op_name, shape_of
from nni_gconv.pruning.calibration import Geometry, SaidAt, is_matrix_layer, matrix_shape


@dataclass(frozen=True)
class Norm:
    """A batch norm behind a layer: its tensors, and its epsilon."""

    scale: Node | None
    shift: Node | None
    mean: Node
    variance: Node
    eps: float

    def slope(self, values: Values) -> Tensor:
        """How its output grows with its input: (filters,)."""
        deviation: Tensor = (values[self.variance] + self.eps).sqrt()
        return 1 / deviation if self.scale is None else values[self.scale] / deviation

    def __call__(self, x: Tensor, values: Values) -> Tensor:
        """Apply it to (n, filters)."""
        y: Tensor = (x - values[self.mean]) * self.slope(values)
        return y if self.shift is None else y + values[self.shift]


@dataclass(frozen=True)
class Layer:
    """A layer that is called once and owns its weight.

    Attributes
    ----------
    node : Node
        The operator.
    weight : str
        Dotted name of its weight.
    bias : str or None
        Of its bias.
    mean : str or None
        Running mean of the batch norm that alone reads its output, without a bias between: a
        constant is taken off it.
    norm : Norm or None
        That norm; also where the layer has a bias.
    sum : Node or None
        What else is added to the output, or to the norm's, when nothing else reads either.
    geometry : Geometry or None
        Of a convolution.
    rectified : bool
        Whether a ReLU alone reads the output, the norm's or the sum.
    """

    node: Node
    weight: str
    bias: str | None
    mean: str | None
    norm: Norm | None
    sum: Node | None
    geometry: Geometry | None
    rectified: bool

    @property
    def takes_constant(self) -> bool:
        """Whether a constant can be added to the output."""
        return self.bias is not None or self.mean is not None

    @property
    def filters(self) -> int:
        """Number of outputs."""
        return matrix_shape(self.node)[0]

    def wanted(
        self, values: tuple[Values, Values], at: SaidAt, every: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the layer should say: what the dense one does, and what its sum partner lacks.

        Parameters
        ----------
        values
            Of the dense and of the pruned network.
        at : SaidAt
            Gathers at some places what is shaped like the layer's output: (n, filters).
        every : int, optional
            At each so many of them it is asked too what the ReLU behind gets.

        Returns
        -------
        wanted : Tensor, shape (n, filters)
        before : Tensor or None
            What the ReLU gets in the dense network.
        """
        dense, pruned = values
        wanted = said = at(dense[self.node])
        other = None if self.sum is None or self.sum not in pruned else at(dense[self.sum])
        if other is not None:
            lacks = other - at(pruned[cast("Node", self.sum)])
            if self.norm is not None:
                lacks *= _inverse(self.norm.slope(dense))
            wanted = said + lacks
        if every is None:
            return wanted, None
        before = said[::every] if self.norm is None else self.norm(said[::every], dense)
        return wanted, before if other is None else before + other[::every]

    def slope(self, values: tuple[Values, Values]) -> Tensor | None:
        """How what the ReLU behind gets grows with what the layer says.

        Returns
        -------
        Tensor, shape (filters,)
            0 where a norm scales a channel to next to nothing.
        None
            There is no ReLU, or what is added to the output is not known yet.
        """
        dense, pruned = values
        if not self.rectified or (self.sum is not None and self.sum not in pruned):
            return None
        if self.norm is None:
            return torch.ones(self.filters).to(dense[self.node])
        slope = self.norm.slope(dense)
        return torch.where(_is_small(slope), 0.0, slope)


def _is_small(slope: Tensor) -> Tensor:
    return slope.abs() < 1e-3 * slope.abs().mean()


def _inverse(slope: Tensor) -> Tensor:
    """Invert, and give up where a norm scales a channel to next to nothing."""
    small = _is_small(slope)
    return torch.where(small, 0.0, 1 / torch.where(small, 1.0, slope))


def find_layers(graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """Find the layers that can be refitted, in the order they run.

    Returns
    -------
    layers : list of Layer
    left : dict of str to str
        Weight of a layer that cannot be refitted -> why.
    """
    names = {n: graph.tensors[n.name] for n in graph.nodes if n.name in graph.tensors}
    used = Counter(names[a] for n in graph.nodes for a in n.all_input_nodes if a in names)
    layers, left = [], {}
    for node in graph.nodes:
        weight = (
            names.get(argument(node, 1, "weight"))
            if "conv" in op_name(node) or (op_name(node) == "linear")
            else None
        )
        if weight is None:
            continue
        if not is_matrix_layer(node):
            left[weight] = f"layers such as {op_name(node)} are not refitted"
        elif used[weight] > 1:
            left[weight] = "its weight is used more than once"
        elif used[names.get(argument(node, 2, "bias"), "")] > 1:
            left[weight] = "its bias is used more than once"
        else:
            layers.append(_layer(node, names, used))
    return layers, left


def _layer(node: Node, names: Mapping[Node, str], used: Counter[str]) -> Layer:
    def alone(tensor: Any) -> str | None:
        name = names.get(tensor) if isinstance(tensor, Node) else None
        return name if name is not None and used[name] == 1 else None

    bias, read = argument(node, 2, "bias"), cast("Node", node.args[1])
    norm = _only_user(node, "batch_norm")
    by_token = op_name(node) == "linear" and len(shape_of(node)) > 2
    if norm is not None and (norm.args[5] or by_token):  # of the batch itself, or not of filters
        norm = None
    mean = alone(norm.args[3]) if norm is not None and bias is None else None
    end = norm or node
    total = _only_user(end, "add")
    partner: Node | None = None
    if total is not None and not total.kwargs and all(isinstance(a, Node) for a in total.args):
        others = [a for a in cast("tuple[Node, ...]", total.args) if a is not end]
        if len(others) == 1 and shape_of(others[0]) == shape_of(end):
            partner = others[0]
    last = end if total is None else total if partner is not None else None
    return Layer(
        node,
        names[read],
        alone(bias),
        mean,
        None if norm is None else _norm(norm),
        partner,
        Geometry.of(node),
        rectified=last is not None and _only_user(last, "relu") is not None,
    )


def _norm(node: Node) -> Norm:
    _, scale, shift, mean, variance, *_, eps, _ = node.args
    return Norm(*cast("tuple[Node, Node, Node, Node, float]", (scale, shift, mean, variance, eps)))


def _only_user(node: Node, name: str) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and op_name(users[0]) == name else None
