"""Norms over channels: which modules are one, how they are traced, and what is left of one.

Begin with :func:`find_norm`. A module that is nothing but a norm over channels is traced as one
operator (`operator`), however its forward is written; where channels went, `kept_norm` gives it a
forward that counts them as the zeros that they were. Convolutions that standardise their filters
(:func:`find_standard`) are norms over the channels of their weights. Knows of torch alone.
"""

from nni_gconv.graph.norms.kept_norm import ChannelNorm, KeptNorm, thin_norm
from nni_gconv.graph.norms.operator import norms_as_operators
from nni_gconv.graph.norms.recognise import find_norm
from nni_gconv.graph.norms.recognise_weight import find_standard
from nni_gconv.graph.norms.standard_weight import (
    KeptStandardConv2d,
    StandardWeight,
    rest_of,
    thin_standard,
)

__all__ = [
    "ChannelNorm",
    "KeptNorm",
    "KeptStandardConv2d",
    "StandardWeight",
    "find_norm",
    "find_standard",
    "norms_as_operators",
    "rest_of",
    "thin_norm",
    "thin_standard",
]
