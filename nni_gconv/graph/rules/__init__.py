"""What each operator does to channels and to constants: one operator family a file, both rules.

`layers` (convolutions, linear), `norms`, `pointwise`, `reductions`, `contractions` (matrix
products), `pooling`, `reshape` (what only moves data) with `parts` (equal parts), `concat`,
`indexing`, `factories`. `registry` is the table
of rules and begins it; `state` is what constant rules write to, `storage` says which values share
memory. A new operator is a rule of each kind in the file of its family.

Knows of the traced graph and of labels; not of masks, pruners or how a model is cut.
"""

from __future__ import annotations

from torch.fx import Node

from nni_gconv.graph.channels import Walker
from nni_gconv.graph.recorder import op_name
from nni_gconv.graph.rules import (
    concat,  # noqa: F401 - each registers its rules
    contractions,  # noqa: F401
    factories,  # noqa: F401
    layers,  # noqa: F401
    norms,  # noqa: F401
    pooling,  # noqa: F401
    reductions,  # noqa: F401
    reshape,  # noqa: F401
)
from nni_gconv.graph.rules.indexing import new_indices, write_indices
from nni_gconv.graph.rules.layers import has_padding
from nni_gconv.graph.rules.parts import width_written_at
from nni_gconv.graph.rules.pointwise import is_pointwise, pointwise, pointwise_constants
from nni_gconv.graph.rules.registry import (
    CHANNEL_RULES,
    CONSTANT_RULES,
    ChannelRule,
    ConstantRule,
    argument,
    nothing_known,
)
from nni_gconv.graph.rules.reshape import PASSES
from nni_gconv.graph.rules.state import State, Value
from nni_gconv.graph.rules.storage import follow_storage, written_by

__all__ = [
    "CHANNEL_RULES",
    "CONSTANT_RULES",
    "PASSES",
    "State",
    "Value",
    "argument",
    "channel_rule_of",
    "constant_rule_of",
    "follow_storage",
    "has_padding",
    "new_indices",
    "width_written_at",
    "write_indices",
    "written_by",
]


def channel_rule_of(node: Node) -> ChannelRule:
    """Return the rule of a traced operator; one that is unknown is opaque."""
    unnamed = pointwise if is_pointwise(node) else Walker.opaque
    return CHANNEL_RULES.get(op_name(node), unnamed)


def constant_rule_of(node: Node) -> ConstantRule:
    """Return the rule of a traced operator; of one that is unknown nothing is known."""
    unnamed = pointwise_constants if is_pointwise(node) else nothing_known
    return CONSTANT_RULES.get(op_name(node), unnamed)
