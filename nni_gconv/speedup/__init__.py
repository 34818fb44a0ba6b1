"""Masks in, a smaller and equal model out.

Begin with :class:`ModelSpeedup`. It makes a `plan` from what :mod:`nni_gconv.graph` says, carries
it out (`cut`, `fold`, `grouping`, `residual`), compares the small model with the masked one
(`verify`) and tells what it did (`report`, `layer_sizes`). Knows of the graph, groupconv and
profiling; not of pruners.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.speedup.layer_sizes import compare_sizes, layer_sizes
    from nni_gconv.speedup.literal_widths import MOST_WIDTHS
    from nni_gconv.speedup.model_speedup import ModelSpeedup
    from nni_gconv.speedup.rehearsal import find_obstacle
    from nni_gconv.speedup.report import LayerChange, SpeedupReport
    from nni_gconv.speedup.residual import steps_of, take_out

__all__ = [
    "MOST_WIDTHS",
    "LayerChange",
    "ModelSpeedup",
    "SpeedupReport",
    "compare_sizes",
    "find_obstacle",
    "layer_sizes",
    "steps_of",
    "take_out",
]

# Lazy: whoever loads a compact file needs `residual` alone.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layer_sizes": ["compare_sizes", "layer_sizes"],
        "literal_widths": ["MOST_WIDTHS"],
        "model_speedup": ["ModelSpeedup"],
        "rehearsal": ["find_obstacle"],
        "report": ["LayerChange", "SpeedupReport"],
        "residual": ["steps_of", "take_out"],
    },
)
