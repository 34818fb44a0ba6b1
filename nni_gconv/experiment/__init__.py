"""Running NNI experiments: checked before, on loopback only, watched to their end.

Examples
--------
>>> from nni_gconv.experiment import experiment_file, run_experiment
>>> outcome = run_experiment(experiment_file("quickstart"))  # doctest: +SKIP
>>> outcome.ok, outcome.message  # doctest: +SKIP
(True, '6 trials succeeded')
"""

from __future__ import annotations

from nni_gconv.experiment.checks.plan import ExperimentPlan
from nni_gconv.experiment.checks.preflight import preflight
from nni_gconv.experiment.launch import run_experiment, start
from nni_gconv.experiment.manager import ManagerClient, ManagerError, TrialState
from nni_gconv.experiment.progress import ExperimentView
from nni_gconv.experiment.resume import resume_experiment
from nni_gconv.experiment.running import RunningExperiment
from nni_gconv.experiment.shipped import experiment_file, experiment_names
from nni_gconv.experiment.watch import Ending, Outcome

__all__ = [
    "Ending",
    "ExperimentPlan",
    "ExperimentView",
    "ManagerClient",
    "ManagerError",
    "Outcome",
    "RunningExperiment",
    "TrialState",
    "experiment_file",
    "experiment_names",
    "preflight",
    "resume_experiment",
    "run_experiment",
    "start",
]
