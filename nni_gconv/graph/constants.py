"""What masks make certain: channels whose value is the same for every input.

A filter whose mask is all zero emits its bias, a batch norm behind it emits a constant, a product
with zero is zero. The pass follows such constants through the graph exactly, from the masks and
the parameters alone; no input is guessed. Unknown is NaN, and a value with nothing known is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from nni_gconv.graph.masks import Wiring
from nni_gconv.graph.recorder import op_name
from nni_gconv.graph.rules import State, Value, constant_rule_of, follow_storage
from nni_gconv.graph.trace import Graph


def known_values(graph: Graph, kept: Mapping[str, Tensor]) -> dict[Node, Any]:
    """Find what is known of each value in the graph when parts of the parameters are zero.

    Parameters
    ----------
    graph : Graph
        From :func:`nni_gconv.graph.trace.trace`.
    kept : mapping of str to bool Tensor
        Dotted parameter name -> True where the parameter is kept, in the parameter's shape.
        A parameter that is absent is kept whole.

    Returns
    -------
    dict of Node to Tensor or None
        float64 arrays that broadcast against the node's value; NaN where nothing is known. For an
        operator with several results, a list.
    """
    return _run(graph, kept).values


def given_values(
    graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None
) -> dict[Any, Tensor]:
    """Find what is known of each channel that a layer reads, at the moment it reads.

    Parameters
    ----------
    graph, kept
        As for :func:`known_values`. An operator that writes in place may change a value after a
        layer has read it, which is why this is not looked up in the other's result.
    wiring : Wiring, optional
        Of the same graph and masks, if it is at hand.

    Returns
    -------
    dict of Node to Tensor
        Convolution or linear node, or ``key`` of what mixes channels -> float64, shape (input
        channels,); NaN where unknown.
    """
    return _run(graph, kept, wiring).given


def known_operands(graph: Graph, kept: Mapping[str, Tensor]) -> dict[Node, tuple[Value, ...]]:
    """Find what is known of both operands of each addition, at the moment they are added.

    Parameters and returned values as for :func:`known_values`.
    """
    return _run(graph, kept).added


def _run(graph: Graph, kept: Mapping[str, Tensor], wiring: Wiring | None = None) -> State:
    state = State(graph, kept, wiring)
    for node in graph.all_nodes:
        if node.op == "call_function":
            if op_name(node) == "add":
                state.added[node] = tuple(state.get(operand) for operand in node.args[:2])
            state.values[node] = constant_rule_of(node)(state, node)
            follow_storage(node, state.values, state.storage, state.same, state.sharing)
    return state
