"""What can be known to be wrong with an experiment before it starts.

Begin with :func:`preflight`, which raises at the first thing, or :func:`check_experiment`, which
lists all. Knows of recipes, remote machines and NNI's schema; starts no manager.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.experiment.checks.checkup import check_experiment, made_ready
    from nni_gconv.experiment.checks.fix import fix_machines
    from nni_gconv.experiment.checks.plan import ExperimentPlan, Resumption
    from nni_gconv.experiment.checks.preflight import as_json, preflight

__all__ = [
    "ExperimentPlan",
    "Resumption",
    "as_json",
    "check_experiment",
    "fix_machines",
    "made_ready",
    "preflight",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkup": ["check_experiment", "made_ready"],
        "fix": ["fix_machines"],
        "plan": ["ExperimentPlan", "Resumption"],
        "preflight": ["as_json", "preflight"],
    },
)
