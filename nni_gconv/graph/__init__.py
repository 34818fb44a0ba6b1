"""A model as a graph of torch operators, and what becomes of channels in it.

Begin with :func:`trace` (one run on fake tensors) and :func:`map_channels` (which positions of
which tensors live and die together, by the `rules` of each operator family). On these stand
:class:`Coupling` (which filters can only be pruned together) and, once there are masks,
`constants` (what is certain of a value), `liveness` (what can go), `branches` (residual blocks that
add nothing), `mask_groups` (groups that a mask leaves) and `segments` (what may be permuted).

Knows of torch, `compat` and `modes`; not of pruners, budgets or how a model is cut.
"""

from nni_gconv.graph.branches import ACTIVATIONS, Branch, find_branches, vanishing
from nni_gconv.graph.channel_map import Axis, Balance, ChannelMap, Read, place, varying
from nni_gconv.graph.constants import given_values, known_operands, known_values
from nni_gconv.graph.coupling import CoupledSet, Coupling, Member
from nni_gconv.graph.liveness import (
    Decision,
    Kept,
    bias_owner,
    decide,
    extend_masks,
    foldable,
    silence_norms,
)
from nni_gconv.graph.mask_groups import (
    GroupedLayer,
    MaskGroups,
    balances,
    find_grouped,
    find_mask_groups,
)
from nni_gconv.graph.masks import Masks, Wiring, load_masks, read_masks
from nni_gconv.graph.norms import ChannelNorm, KeptNorm, find_norm, thin_norm
from nni_gconv.graph.propagate import map_channels
from nni_gconv.graph.recorder import module_calls, op_name, shape_of
from nni_gconv.graph.replay import Replay, Values, state_of
from nni_gconv.graph.rules import argument, new_indices, width_written_at, write_indices
from nni_gconv.graph.segments import ChannelOrder, Segments
from nni_gconv.graph.sizes import Attribute, set_attributes, solve, watch_sizes, widths_of
from nni_gconv.graph.trace import Graph, as_inputs, example_input, location, trace
from nni_gconv.graph.weights import (
    KeptStandardConv2d,
    Known,
    StandardWeight,
    find_standard,
    rest_of,
    thin_standard,
    weight_source,
)

__all__ = [
    "ACTIVATIONS",
    "Attribute",
    "Axis",
    "Balance",
    "Branch",
    "ChannelMap",
    "ChannelNorm",
    "ChannelOrder",
    "CoupledSet",
    "Coupling",
    "Decision",
    "Graph",
    "GroupedLayer",
    "Kept",
    "KeptNorm",
    "KeptStandardConv2d",
    "Known",
    "MaskGroups",
    "Masks",
    "Member",
    "Read",
    "Replay",
    "Segments",
    "StandardWeight",
    "Values",
    "Wiring",
    "argument",
    "as_inputs",
    "balances",
    "bias_owner",
    "decide",
    "example_input",
    "extend_masks",
    "find_branches",
    "find_grouped",
    "find_mask_groups",
    "find_norm",
    "find_standard",
    "foldable",
    "given_values",
    "known_operands",
    "known_values",
    "load_masks",
    "location",
    "map_channels",
    "module_calls",
    "new_indices",
    "op_name",
    "place",
    "read_masks",
    "rest_of",
    "set_attributes",
    "shape_of",
    "silence_norms",
    "solve",
    "state_of",
    "thin_norm",
    "thin_standard",
    "trace",
    "vanishing",
    "varying",
    "watch_sizes",
    "weight_source",
    "width_written_at",
    "widths_of",
    "write_indices",
]
