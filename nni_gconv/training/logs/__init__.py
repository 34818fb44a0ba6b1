"""What a training run writes down for people: numbers, TensorBoard, progress.

Begin with :class:`MetricLog`. Knows of files and NNI's reports; of no training.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.training.logs.distributions import log_distributions
    from nni_gconv.training.logs.metric_log import MetricLog, check_numbers
    from nni_gconv.training.logs.progress import EpochProgress
    from nni_gconv.training.logs.trackers import open_trackers

__all__ = [
    "EpochProgress",
    "MetricLog",
    "check_numbers",
    "log_distributions",
    "open_trackers",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "distributions": ["log_distributions"],
        "metric_log": ["MetricLog", "check_numbers"],
        "progress": ["EpochProgress"],
        "trackers": ["open_trackers"],
    },
)
