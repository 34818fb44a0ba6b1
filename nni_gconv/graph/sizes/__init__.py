"""Sizes that a forward asks for: where they come from, and what they are in a smaller model.

Begin with :func:`watch_sizes`. A size follows from shapes that the forward meets, from attributes
of its modules (`attributes`, which can be set), or it is a number in the code. Knows of torch and
of the traced operators; not of channels.
"""

from nni_gconv.graph.sizes.attributes import (
    Attribute,
    Sum,
    independent,
    set_attributes,
    solve,
    widths_of,
)
from nni_gconv.graph.sizes.origins import HELD, Call, Origin, Reads, SizeLog, watch_sizes

__all__ = [
    "HELD",
    "Attribute",
    "Call",
    "Origin",
    "Reads",
    "SizeLog",
    "Sum",
    "independent",
    "set_attributes",
    "solve",
    "watch_sizes",
    "widths_of",
]
