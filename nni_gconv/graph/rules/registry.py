"""The table of rules: what each operator does to channels, and what to constants.

A *channel rule* takes the walker and a node, may tie or pin labels, and returns the fields of the
result. A *constant rule* takes the state and a node, and returns what is known of the result. Both
rules of an operator stand in the file of its family; an operator that has the one and not the
other says so (:func:`constants_unknown`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch.fx import Node

from nni_gconv.graph.channel_map import Field, varying
from nni_gconv.graph.channels import Walker

if TYPE_CHECKING:
    from nni_gconv.graph.rules.state import State

ChannelRule = Callable[[Walker, Node], Any]
ConstantRule = Callable[["State", Node], Any]
_Rule = TypeVar("_Rule")

#: Rules by the operator's name, see :func:`nni_gconv.graph.recorder.op_name`.
CHANNEL_RULES: dict[str, ChannelRule] = {}
CONSTANT_RULES: dict[str, ConstantRule] = {}


def channel_rule(*names: str) -> Callable[[ChannelRule], ChannelRule]:
    """Register a channel rule for operators of these names."""
    return _enter(CHANNEL_RULES, names)


def constant_rule(*names: str) -> Callable[[ConstantRule], ConstantRule]:
    """Register a constant rule for operators of these names."""
    return _enter(CONSTANT_RULES, names)


def constants_unknown(*names: str) -> None:
    """State that nothing is known of what these operators make of constants."""
    _enter(CONSTANT_RULES, names)(nothing_known)


def nothing_known(_: State, __: Node) -> None:
    """Return the constant rule's way of saying that it does not know."""
    return


def _enter(table: dict[str, _Rule], names: tuple[str, ...]) -> Callable[[_Rule], _Rule]:
    def add(function: _Rule) -> _Rule:
        table.update(dict.fromkeys(names, function))
        return function

    return add


# -- what rules share -----------------------------------------------------------------------------


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """Read an operator's argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def merge(walker: Walker, merged: list[Field], field: Field) -> None:
    """Add a field, tied to the one that runs along the same dimensions if there is one."""
    along = set(varying(field))
    if not along:
        return
    for index, other in enumerate(merged):
        if along & set(varying(other)):
            walker.equal(field, other)
            if along > set(varying(other)):
                merged[index] = field
            return
    merged.append(field)
