"""Weights that a forward computes: of which parameters, and what is left of them after a cut.

Begin with :func:`computed_weights`. A convolution that standardises its filters
(:func:`find_standard`) becomes one that still counts the columns that went.
"""

from nni_gconv.graph.weights.alike import Known, once
from nni_gconv.graph.weights.recognise import find_standard
from nni_gconv.graph.weights.source import computed_weights, weight_source
from nni_gconv.graph.weights.standard import (
    KeptStandardConv2d,
    StandardWeight,
    padded,
    rest_of,
    standardise,
    thin_standard,
)

__all__ = [
    "KeptStandardConv2d",
    "Known",
    "StandardWeight",
    "computed_weights",
    "find_standard",
    "once",
    "padded",
    "rest_of",
    "standardise",
    "thin_standard",
    "weight_source",
]
