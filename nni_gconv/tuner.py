"""Tuners for experiment files, by ``className`` or under the names they are registered by.

=================  =====================  ======================================================
class              registered name        what it is
=================  =====================  ======================================================
``ParetoTuner``    ``GConvPareto``        ours: fills the front of accuracy and cost
``Hyperband``      ``GConvHyperband``     NNI's Hyperband, mended
``BOHB``           ``GConvBOHB``          NNI's BOHB, mended (needs ``nni-gconv[bohb]``)
``TPE``            ``GConvTPE``           NNI's TPE, mended for early stopping
``Evolution``      ``GConvEvolution``     NNI's Evolution, mended for early stopping
=================  =====================  ======================================================

Nothing here imports torch: NNI gives a tuner ten seconds to come up.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["BOHB", "TPE", "Evolution", "Hyperband", "ParetoTuner"]

_PLACES = {
    "ParetoTuner": "nni_gconv.tuning.pareto",
    "Hyperband": "nni_gconv.compat.nni_algorithms",
    "BOHB": "nni_gconv.compat.nni_bohb",
    "TPE": "nni_gconv.compat.nni_algorithms",
    "Evolution": "nni_gconv.compat.nni_algorithms",
}

if TYPE_CHECKING:
    from nni_gconv.compat.nni_algorithms import TPE, Evolution, Hyperband
    from nni_gconv.compat.nni_bohb import BOHB
    from nni_gconv.tuning.pareto import ParetoTuner


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
