"""Norms over channels: which modules are one, how they are traced, and what is left of one.

Begin with :func:`find_norm`. A module that is nothing but a norm over channels is traced as one
operator (`operator`), however its forward is written; where channels went, `kept_norm` gives it a
forward that counts them as the zeros that they were. Convolutions that standardise their filters
(:mod:`nni_gconv.graph.weights`) are traced as operators too. Knows of torch alone.
"""

from nni_gconv.graph.norms.kept_norm import ChannelNorm, KeptNorm, thin_norm
from nni_gconv.graph.norms.operator import norms_as_operators
from nni_gconv.graph.norms.recognise import find_norm

__all__ = [
    "ChannelNorm",
    "KeptNorm",
    "find_norm",
    "norms_as_operators",
    "thin_norm",
]
