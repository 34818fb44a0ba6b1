"""Tuners for experiment files, by ``className`` or under the names they are registered by.

=================  =====================  ======================================================
class              registered name        what it is
=================  =====================  ======================================================
``ParetoTuner``    ``GConvPareto``        ours: fills the front of accuracy and cost
``Hyperband``      ``GConvHyperband``     NNI's Hyperband, fixed
``BOHB``           (by class only)        NNI's BOHB, fixed (needs ``nni-gconv[bohb]``)
``TPE``            ``GConvTPE``           NNI's TPE, fixed for early stopping
``Evolution``      ``GConvEvolution``     NNI's Evolution, fixed for early stopping
``GridSearch``     ``GConvGridSearch``    NNI's GridSearch, fixed for ``nnictl resume``
=================  =====================  ======================================================

Register them once in each environment, then ``tuner: {name: GConvPareto}`` will do::

    nnictl algo register --meta_path "$(python -m nni_gconv.tuner)"

Nothing here imports torch: NNI gives a tuner ten seconds to come up.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["BOHB", "TPE", "Evolution", "GridSearch", "Hyperband", "ParetoTuner"]

_PLACES = {
    "ParetoTuner": "nni_gconv.tuning.pareto",
    "Hyperband": "nni_gconv.compat.mended_tuners",
    "BOHB": "nni_gconv.compat.mended_bohb",
    "TPE": "nni_gconv.compat.mended_tuners",
    "Evolution": "nni_gconv.compat.mended_tuners",
    "GridSearch": "nni_gconv.tuning.grid",
}

if TYPE_CHECKING:
    from nni_gconv.compat import BOHB, TPE, Evolution, Hyperband
    from nni_gconv.tuning import GridSearch, ParetoTuner


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if __name__ == "__main__":
    print(Path(__file__).parent / "tuning" / "algorithms.yml")  # noqa: T201 - for the shell
