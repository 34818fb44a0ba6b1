"""Structured pruning and group convolution for NNI 3.0.

Public names are imported when they are first used, so that ``import nni_gconv`` is quick and
starts nothing of NNI or torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nni_gconv._version import __version__

_PUBLIC = {
    "FPGMPruner": "nni_gconv.pruning.fpgm",
    "ModelSpeedup": "nni_gconv.speedup.model_speedup",
    "profile": "nni_gconv.profiling.costs",
}

__all__ = ["FPGMPruner", "ModelSpeedup", "__version__", "profile"]

if TYPE_CHECKING:
    from nni_gconv.profiling.costs import profile
    from nni_gconv.pruning.fpgm import FPGMPruner
    from nni_gconv.speedup.model_speedup import ModelSpeedup


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nni_gconv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
