"""Structured pruning and group convolution for NNI 3.0.

Public names are imported when they are first used, so that ``import nni_gconv`` is quick and
starts nothing of NNI or torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nni_gconv._version import __version__

_PUBLIC = {
    "Calibration": "nni_gconv.pruning",
    "FPGMPruner": "nni_gconv.pruning.methods.fpgm",
    "GSparsityPruner": "nni_gconv.pruning.methods.gsparsity.pruner",
    "GroupConvPruner": "nni_gconv.pruning.methods.gconv.pruner",
    "ModelSpeedup": "nni_gconv.speedup",
    "Partition": "nni_gconv.groupconv.partition",
    "ProxSGD": "nni_gconv.training.proxsgd",
    "Recipe": "nni_gconv.recipe.schema",
    "ShufflePruner": "nni_gconv.pruning.methods.shuffle.pruner",
    "SecondOrderPruner": "nni_gconv.pruning.criteria.second_order",
    "SlimmingPruner": "nni_gconv.pruning.methods.slimming.pruner",
    "export_model": "nni_gconv.export",
    "load_compact": "nni_gconv.artefact",
    "optimize": "nni_gconv.inference",
    "partition": "nni_gconv.groupconv.partition",
    "profile": "nni_gconv.profiling",
    "recalibrate_bn": "nni_gconv.training.recalibrate",
    "reconstruct": "nni_gconv.pruning",
    "register_pruner": "nni_gconv.pruning.registry",
    "run_recipe": "nni_gconv.recipe.run",
    "save_compact": "nni_gconv.artefact",
    "search_groups": "nni_gconv.groupconv.search",
    "sensitivity": "nni_gconv.analysis",
    "shrink": "nni_gconv.shrinking",
}

__all__ = [
    "Calibration",
    "FPGMPruner",
    "GSparsityPruner",
    "GroupConvPruner",
    "ModelSpeedup",
    "Partition",
    "ProxSGD",
    "Recipe",
    "SecondOrderPruner",
    "ShufflePruner",
    "SlimmingPruner",
    "__version__",
    "export_model",
    "load_compact",
    "optimize",
    "partition",
    "profile",
    "recalibrate_bn",
    "reconstruct",
    "register_pruner",
    "run_recipe",
    "save_compact",
    "search_groups",
    "sensitivity",
    "shrink",
]

if TYPE_CHECKING:
    from nni_gconv.analysis import sensitivity
    from nni_gconv.artefact import load_compact, save_compact
    from nni_gconv.export import export_model
    from nni_gconv.groupconv.partition import Partition, partition
    from nni_gconv.groupconv.search import search_groups
    from nni_gconv.inference import optimize
    from nni_gconv.profiling import profile
    from nni_gconv.pruning import (
        Calibration,
        FPGMPruner,
        GroupConvPruner,
        GSparsityPruner,
        SecondOrderPruner,
        ShufflePruner,
        SlimmingPruner,
        reconstruct,
        register_pruner,
    )
    from nni_gconv.recipe import Recipe, run_recipe
    from nni_gconv.shrinking import shrink
    from nni_gconv.speedup import ModelSpeedup
    from nni_gconv.training import ProxSGD, recalibrate_bn


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nni_gconv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
