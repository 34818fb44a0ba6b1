"""Data sets, networks and the training loop.

Begin with :func:`fit`; `data` loads images, `zoo` makes networks, `engine` is the loop that `fit`
and NNI's evaluator share, `logs` writes metrics. Knows of compat and groupconv.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.training.distributed import (
        Distributed,
        from_main_process,
        in_every_process,
        process_number,
        several_processes,
        summed,
    )
    from nni_gconv.training.engine import FitResult
    from nni_gconv.training.evaluator import make_evaluator
    from nni_gconv.training.features import CommonMaps, FeatureTeacher, common_maps
    from nni_gconv.training.logs import MetricLog
    from nni_gconv.training.loop import fit
    from nni_gconv.training.metrics import evaluate, no_better_than_chance
    from nni_gconv.training.proxsgd import ProxSGD, gain_scale, group_soft_threshold
    from nni_gconv.training.recalibrate import recalibrate_bn
    from nni_gconv.training.seeding import seed_everything
    from nni_gconv.training.settings import FinetuneSettings, TrainSettings

__all__ = [
    "CommonMaps",
    "Distributed",
    "FeatureTeacher",
    "FinetuneSettings",
    "FitResult",
    "MetricLog",
    "ProxSGD",
    "TrainSettings",
    "common_maps",
    "evaluate",
    "fit",
    "from_main_process",
    "gain_scale",
    "group_soft_threshold",
    "in_every_process",
    "make_evaluator",
    "no_better_than_chance",
    "process_number",
    "recalibrate_bn",
    "seed_everything",
    "several_processes",
    "summed",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "distributed": [
            "Distributed",
            "from_main_process",
            "in_every_process",
            "process_number",
            "several_processes",
            "summed",
        ],
        "engine": ["FitResult"],
        "evaluator": ["make_evaluator"],
        "features": ["CommonMaps", "FeatureTeacher", "common_maps"],
        "logs": ["MetricLog"],
        "loop": ["fit"],
        "metrics": ["evaluate", "no_better_than_chance"],
        "proxsgd": ["ProxSGD", "gain_scale", "group_soft_threshold"],
        "recalibrate": ["recalibrate_bn"],
        "seeding": ["seed_everything"],
        "settings": ["FinetuneSettings", "TrainSettings"],
    },
)
