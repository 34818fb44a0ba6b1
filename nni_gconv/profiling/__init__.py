"""What a model costs: parameters, MACs, memory and measured latency."""

from nni_gconv.profiling.costs import Counts, LayerProfile, Memory, Profile, count, profile
from nni_gconv.profiling.latency import (
    Latency,
    LatencyComparison,
    LatencySettings,
    compare_latency,
    measure_latency,
)

__all__ = [
    "Counts",
    "Latency",
    "LatencyComparison",
    "LatencySettings",
    "LayerProfile",
    "Memory",
    "Profile",
    "compare_latency",
    "count",
    "measure_latency",
    "profile",
]
