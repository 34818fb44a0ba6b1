"""What a model costs: parameters, MACs, memory and measured latency, and budgets of them.

Begin with :func:`count` and :func:`profile` (`costs`), and :func:`compare_latency`, which times
networks in turn (`latency`). `budget` reads what a user asks for, `forward` runs a model without
changing it. Knows of torch and `compat`; of no pruner.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.profiling.backends import BACKENDS, on_backend
    from nni_gconv.profiling.budget import check_met, parse_budget
    from nni_gconv.profiling.costs import Counts, LayerProfile, Memory, Profile, count, profile
    from nni_gconv.profiling.forward import (
        DummyInput,
        batch_of,
        device_of,
        measuring,
        run,
        samples_in,
        to_device,
        with_batch,
    )
    from nni_gconv.profiling.latency import (
        Latency,
        LatencyComparison,
        compare_latency,
        measure_latency,
        milliseconds,
    )
    from nni_gconv.profiling.machine import machine_of
    from nni_gconv.profiling.rounds import clock_for, cpu_threads, in_turn, paired_ratio
    from nni_gconv.profiling.settings import LatencySettings

__all__ = [
    "BACKENDS",
    "Counts",
    "DummyInput",
    "Latency",
    "LatencyComparison",
    "LatencySettings",
    "LayerProfile",
    "Memory",
    "Profile",
    "batch_of",
    "check_met",
    "clock_for",
    "compare_latency",
    "count",
    "cpu_threads",
    "device_of",
    "in_turn",
    "machine_of",
    "measure_latency",
    "measuring",
    "milliseconds",
    "on_backend",
    "paired_ratio",
    "parse_budget",
    "profile",
    "run",
    "samples_in",
    "to_device",
    "with_batch",
]

# Lazy: a help page loads no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "settings": ["LatencySettings"],
        "backends": ["BACKENDS", "on_backend"],
        "budget": ["check_met", "parse_budget"],
        "costs": ["Counts", "LayerProfile", "Memory", "Profile", "count", "profile"],
        "forward": [
            "DummyInput",
            "batch_of",
            "device_of",
            "measuring",
            "run",
            "samples_in",
            "to_device",
            "with_batch",
        ],
        "latency": [
            "Latency",
            "LatencyComparison",
            "compare_latency",
            "measure_latency",
            "milliseconds",
        ],
        "machine": ["machine_of"],
        "rounds": ["clock_for", "cpu_threads", "in_turn", "paired_ratio"],
    },
)
