"""Weights that are left are fitted to what the dense network says, layer after layer.

Begin with :func:`reconstruct`; `walk` is the paper's idea and ours, `least_squares` the formula,
`layers` which layers of a traced network can be fitted. Knows of the traced graph and calibration
images; of pruners nothing: any masks will do.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.reconstruction.checked_refit import Reconstruction, reconstruct
    from nni_gconv.pruning.reconstruction.settings import ReconstructSettings

__all__ = ["ReconstructSettings", "Reconstruction", "reconstruct"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checked_refit": ["Reconstruction", "reconstruct"],
        "settings": ["ReconstructSettings"],
    },
)
