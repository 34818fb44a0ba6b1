"""Three budgets as an NNI experiment, from Python: no YAML, on loopback, watched to its end."""

import json
from pathlib import Path

from nni.experiment import Experiment

from nni_gconv.experiment import run_experiment
from nni_gconv.report import collect

RECIPE = {
    "device": "cpu",
    "threads": 1,
    "model": {"name": "resnet8", "options": {"width": 0.25}},
    "data": {"name": "digits", "batch_size": 64},
    "train": {"epochs": 2, "optimizer": {"lr": 0.1}, "share": "experiment"},
    "prune": {"budget": {"macs": 0.5}, "calibration": {"images": 256}},
    "report": {"latency": None},
}

if __name__ == "__main__":
    Path("recipe.json").write_text(json.dumps(RECIPE))
    experiment = Experiment("local")
    experiment.config.trial_command = "nni-gconv run recipe.json"
    experiment.config.search_space = {
        "prune.budget.macs": {"_type": "choice", "_value": [0.7, 0.5, 0.3]}
    }
    experiment.config.tuner.name = "GridSearch"
    experiment.config.trial_concurrency = 1
    outcome = run_experiment(experiment.config)
    print(outcome.message)
    for row in collect(outcome.folder):
        print(f"{row.macs_ratio:.2f} of the MACs: accuracy {row.accuracy:.3f}")
    assert outcome.ok
