"""A recipe that runs in a second or two."""

from __future__ import annotations

import copy

TINY = {
    "name": "tiny",
    "device": "cpu",
    "model": {"name": "resnet8", "options": {"width": 0.25}},
    "data": {"name": "digits", "train_size": 160, "test_size": 40, "batch_size": 32},
    "train": {"epochs": 2, "optimizer": {"lr": 0.05}},
    "prune": {"method": "fpgm", "budget": {"macs": 0.6}},
    "finetune": {"epochs": 2},
    "report": {"latency": None},
}


def tiny(**changes):
    """A copy of the recipe with sections replaced; None takes one away."""
    recipe = {**copy.deepcopy(TINY), **changes}
    return {key: value for key, value in recipe.items() if value is not None}
