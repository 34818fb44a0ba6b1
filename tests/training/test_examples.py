"""The examples in the docstrings run, and reading settings does not load torch."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

MODULES = [
    *(
        "seeding",
        "settings",
        "optim",
        "distributed",
        "metrics",
        "logs.metric_log",
        "loop",
        "evaluator",
    ),
    *("data", "data.settings", "data.split", "data.augment", "data.arrays", "data.load"),
    "data.loaders",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"nni_gconv.training.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0


def test_settings_are_read_without_torch():
    code = (
        "import sys; import nni_gconv.training.settings; "
        "from nni_gconv.training.data import DataSettings; "
        "print([m for m in ('torch', 'torchvision', 'nni', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""
