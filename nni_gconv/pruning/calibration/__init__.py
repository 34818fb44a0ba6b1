"""What layers read on a thousand images: the statistics that data-aware pruning stands on.

:class:`Calibration` holds the images, `patches` gathers what a layer reads at chosen places, and
`moments` sums that up for every layer in one pass. Knows of the traced graph alone.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.calibration.gram import gram
    from nni_gconv.pruning.calibration.images import Calibration
    from nni_gconv.pruning.calibration.moments import (
        layer_covariances,
        read_moments,
        running,
        trace_images,
    )
    from nni_gconv.pruning.calibration.patches import (
        AT_A_TIME,
        Geometry,
        SaidAt,
        is_matrix_layer,
        joined,
        matrix_shape,
        places_for,
        read_samples,
        weight_matrix,
        weight_of,
    )

__all__ = [
    "AT_A_TIME",
    "Calibration",
    "Geometry",
    "SaidAt",
    "gram",
    "is_matrix_layer",
    "joined",
    "layer_covariances",
    "matrix_shape",
    "places_for",
    "read_moments",
    "read_samples",
    "running",
    "trace_images",
    "weight_matrix",
    "weight_of",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "gram": ["gram"],
        "images": ["Calibration"],
        "moments": ["layer_covariances", "read_moments", "running", "trace_images"],
        "patches": [
            "AT_A_TIME",
            "Geometry",
            "SaidAt",
            "is_matrix_layer",
            "joined",
            "matrix_shape",
            "places_for",
            "read_samples",
            "weight_matrix",
            "weight_of",
        ],
    },
)
