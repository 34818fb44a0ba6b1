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
from nni_gconv.pruning.calibration.patches import Geometry, is_matrix_layer

#: Scale, running variance and epsilon of a batch norm.
Scale = tuple[Node | None, Node, float]


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
    scale : Scale or None
        Of that norm.
    sum : Node or None
        What else is added to the output, or to the norm's, when nothing else reads either.
    geometry : Geometry or None
        Of a convolution.
    """

    node: Node
    weight: str
    bias: str | None
    mean: str | None
    scale: Scale | None
    sum: Node | None
    geometry: Geometry | None

    @property
    def takes_constant(self) -> bool:
        """Whether a constant can be added to the output."""
        return self.bias is not None or self.mean is not None

    @property
    def filters(self) -> int:
        """Number of outputs."""
        return shape_of(self.node.args[1])[0]

    def wanted(self, values: tuple[Values, Values]) -> Tensor:
        """What the layer should say: what the dense one does, and what its sum partner lacks."""
        dense, pruned = values
        said: Tensor = dense[self.node]
        if self.sum is None or self.sum not in pruned:
            return said
        lacks = dense[self.sum] - pruned[self.sum]
        if self.scale is not None:
            scale, variance, eps = self.scale
            deviation = (dense[variance] + eps).sqrt()
            factor = deviation if scale is None else _divide(deviation, dense[scale])
            lacks = lacks * factor.view(-1, *[1] * (lacks.dim() - 2))
        return said + lacks


def _divide(deviation: Tensor, scale: Tensor) -> Tensor:
    """Divide, and give up where a norm scales a channel to next to nothing."""
    small = scale.abs() < 1e-3 * scale.abs().mean()
    return torch.where(small, 0.0, deviation / torch.where(small, 1.0, scale))


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
            left[weight] = "transposed convolutions are not refitted"
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
    if norm is not None and norm.args[5]:  # statistics of the batch itself
        norm = None
    mean = alone(norm.args[3]) if norm is not None and bias is None else None
    scale = cast("Scale", (norm.args[1], norm.args[4], norm.args[7])) if norm is not None else None
    end = norm or node
    total = _only_user(end, "add")
    partner: Node | None = None
    if total is not None and not total.kwargs and all(isinstance(a, Node) for a in total.args):
        others = [a for a in cast("tuple[Node, ...]", total.args) if a is not end]
        if len(others) == 1 and shape_of(others[0]) == shape_of(end):
            partner = others[0]
    return Layer(
        node,
        names[read],
        alone(bias),
        mean,
        scale,
        partner,
        Geometry.of(node),
    )  # fmt: skip


def _only_user(node: Node, name: str) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and op_name(users[0]) == name else None
