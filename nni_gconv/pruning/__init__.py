"""Pruning: which channels go, or how layers are split in groups, said by NNI's masks.

Knows of NNI's idiom (config_list, evaluator, masks), the traced graph of a model and what it
costs; it knows nothing of recipes, trials and surgery, except for a budget of latency, which builds
small models to time them.

Begin with
----------
``hooks``             what a pruner can do while a network trains, and in which order
``options``           what every pruner can be told, declared once
``pruner``            their base; ``channel_pruner`` and ``group_pruner`` are the two kinds
``methods/``          one file or folder a published method
``criteria/``         one file a criterion that ranks channels, without training of its own
``selection/``        scores, coupled sets and budgets: which channels, and how many
``registry``          methods by name, also a user's own; ``docs/own_method.md`` makes one
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.calibration import Calibration
    from nni_gconv.pruning.channel_pruner import ChannelPruner
    from nni_gconv.pruning.criteria import SecondOrderPruner
    from nni_gconv.pruning.group_pruner import GroupPruner
    from nni_gconv.pruning.methods.fpgm import FPGMPruner
    from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner
    from nni_gconv.pruning.methods.gsparsity.pruner import GSparsityPruner
    from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner
    from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner
    from nni_gconv.pruning.options import ChannelOptions, PrunerOptions, Rule, Traced
    from nni_gconv.pruning.plain_loop import EpochLoop, PlainLoop
    from nni_gconv.pruning.pruner import TrainedPruner
    from nni_gconv.pruning.reconstruction import Reconstruction, ReconstructSettings, reconstruct
    from nni_gconv.pruning.registry import Method, find_method, method_names, register_pruner
    from nni_gconv.pruning.schedule import Schedule
    from nni_gconv.pruning.selection.allocation import Request, removal_steps, take
    from nni_gconv.pruning.selection.budget import least_costs
    from nni_gconv.pruning.selection.cost import CostModel
    from nni_gconv.pruning.selection.coupled_sets import taken_channels
    from nni_gconv.pruning.selection.prunable import judged
    from nni_gconv.pruning.selection.skipped import find_skipped
    from nni_gconv.pruning.settings import PruneSettings, create_pruner

__all__ = [
    "Calibration",
    "ChannelOptions",
    "ChannelPruner",
    "CostModel",
    "EpochLoop",
    "FPGMPruner",
    "GSparsityPruner",
    "GroupConvPruner",
    "GroupPruner",
    "Method",
    "PlainLoop",
    "PruneSettings",
    "PrunerOptions",
    "ReconstructSettings",
    "Reconstruction",
    "Request",
    "Rule",
    "Schedule",
    "SecondOrderPruner",
    "ShufflePruner",
    "SlimmingPruner",
    "Traced",
    "TrainedPruner",
    "create_pruner",
    "find_method",
    "find_skipped",
    "judged",
    "least_costs",
    "method_names",
    "reconstruct",
    "register_pruner",
    "removal_steps",
    "take",
    "taken_channels",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": ["Calibration"],
        "channel_pruner": ["ChannelPruner"],
        "criteria": ["SecondOrderPruner"],
        "group_pruner": ["GroupPruner"],
        "methods.fpgm": ["FPGMPruner"],
        "methods.gconv.pruner": ["GroupConvPruner"],
        "methods.gsparsity.pruner": ["GSparsityPruner"],
        "methods.shuffle.pruner": ["ShufflePruner"],
        "methods.slimming.pruner": ["SlimmingPruner"],
        "options": ["ChannelOptions", "PrunerOptions", "Rule", "Traced"],
        "plain_loop": ["EpochLoop", "PlainLoop"],
        "pruner": ["TrainedPruner"],
        "reconstruction": ["ReconstructSettings", "Reconstruction", "reconstruct"],
        "registry": ["Method", "find_method", "method_names", "register_pruner"],
        "schedule": ["Schedule"],
        "selection.allocation": ["Request", "removal_steps", "take"],
        "selection.budget": ["least_costs"],
        "selection.cost": ["CostModel"],
        "selection.coupled_sets": ["taken_channels"],
        "selection.prunable": ["judged"],
        "selection.skipped": ["find_skipped"],
        "settings": ["PruneSettings", "create_pruner"],
    },
)
