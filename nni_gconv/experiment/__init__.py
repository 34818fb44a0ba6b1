"""Running NNI experiments: checked before, on loopback only, watched to their end.

Begin with :func:`run_experiment`: `checks` say what is wrong, `launch` starts the manager, `watch`
stays until the end. Knows of recipes, remote machines and NNI's manager; of no network.

Examples
--------
>>> from nni_gconv.experiment import experiment_file, run_experiment
>>> outcome = run_experiment(experiment_file("quickstart"))  # doctest: +SKIP
>>> outcome.ok, outcome.message  # doctest: +SKIP
(True, '6 trials succeeded')
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.experiment.checks import (
        ExperimentPlan,
        check_experiment,
        fix_machines,
        made_ready,
        preflight,
    )
    from nni_gconv.experiment.epochs import epochs_of, held, progress_of
    from nni_gconv.experiment.launch import run_experiment, start
    from nni_gconv.experiment.locate import find_experiment, folder_of, hint_of_id
    from nni_gconv.experiment.manager import ManagerClient, ManagerError, TrialState
    from nni_gconv.experiment.progress import ExperimentView
    from nni_gconv.experiment.resume import resume_experiment
    from nni_gconv.experiment.running import RunningExperiment
    from nni_gconv.experiment.shipped import experiment_file, experiment_names, with_seeds
    from nni_gconv.experiment.watch import Ending, Outcome, last_lines

__all__ = [
    "Ending",
    "ExperimentPlan",
    "ExperimentView",
    "ManagerClient",
    "ManagerError",
    "Outcome",
    "RunningExperiment",
    "TrialState",
    "check_experiment",
    "epochs_of",
    "experiment_file",
    "experiment_names",
    "find_experiment",
    "fix_machines",
    "folder_of",
    "held",
    "hint_of_id",
    "last_lines",
    "made_ready",
    "preflight",
    "progress_of",
    "resume_experiment",
    "run_experiment",
    "start",
    "with_seeds",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks.checkup": ["check_experiment", "made_ready"],
        "checks.fix": ["fix_machines"],
        "checks.plan": ["ExperimentPlan"],
        "checks.preflight": ["preflight"],
        "epochs": ["epochs_of", "held", "progress_of"],
        "launch": ["run_experiment", "start"],
        "locate": ["find_experiment", "folder_of", "hint_of_id"],
        "manager": ["ManagerClient", "ManagerError", "TrialState"],
        "progress": ["ExperimentView"],
        "resume": ["resume_experiment"],
        "running": ["RunningExperiment"],
        "shipped": ["experiment_file", "experiment_names", "with_seeds"],
        "watch": ["Ending", "Outcome", "last_lines"],
    },
)
