"""Pruning: which channels go, or how layers are split in groups, said by NNI's masks.

It knows NNI's idiom (config_list, evaluator, masks), the traced graph of a model and what it
costs; it knows nothing of recipes, trials and surgery, except for a budget of latency, which builds
small models to time them.

Where to begin
--------------
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
    from nni_gconv.pruning.group_pruner import GroupPruner
    from nni_gconv.pruning.options import ChannelOptions, PrunerOptions
    from nni_gconv.pruning.pruner import TrainedPruner
    from nni_gconv.pruning.reconstruction import Reconstruction, reconstruct
    from nni_gconv.pruning.registry import create_pruner, method_names, register_pruner
    from nni_gconv.pruning.schedule import Schedule
    from nni_gconv.pruning.settings import PruneSettings

__all__ = [
    "Calibration",
    "ChannelOptions",
    "ChannelPruner",
    "GroupPruner",
    "PruneSettings",
    "PrunerOptions",
    "Reconstruction",
    "Schedule",
    "TrainedPruner",
    "create_pruner",
    "method_names",
    "reconstruct",
    "register_pruner",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": ["Calibration"],
        "reconstruction": ["Reconstruction", "reconstruct"],
        "channel_pruner": ["ChannelPruner"],
        "group_pruner": ["GroupPruner"],
        "options": ["ChannelOptions", "PrunerOptions"],
        "pruner": ["TrainedPruner"],
        "registry": ["create_pruner", "method_names", "register_pruner"],
        "schedule": ["Schedule"],
        "settings": ["PruneSettings"],
    },
)
