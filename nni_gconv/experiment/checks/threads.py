"""CPU threads of trials that run at the same time on this machine."""

from __future__ import annotations

from typing import Any

from nni_gconv.compat import usable_cores
from nni_gconv.experiment.checks.trial_recipe import TrialRecipe


def thread_notes(config: Any, trial: TrialRecipe | None) -> list[str]:
    """Compare the threads that trials are told to start with the cores of this machine.

    Where nothing is said a trial takes its share by itself.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        Canonical, of the platform ``local``.
    trial : TrialRecipe, optional
        What its trials run.

    Returns
    -------
    list of str
        What is allowed but may not be meant.
    """
    trials = config.trial_concurrency
    threads = "" if trial is None else str(trial.value("threads"))
    if trials == 1 or not threads.isdigit() or "threads" in (config.search_space or {}):
        return []
    cores = usable_cores()
    if int(threads) == 1 or int(threads) * trials <= cores:  # one alone waits for no other
        return []
    return [
        f"trialConcurrency: {trials} with threads: {threads} each is more than {cores} cores: "
        "trials wait for each other and take many times as long"
    ]
