"""Every example in a docstring runs and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import nni_gconv
from nni_gconv.pruning import registry as pruners
from nni_gconv.training.zoo import registry as models

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def with_examples() -> list[str]:
    """All modules of the package whose text holds examples."""
    found = []
    for module in pkgutil.walk_packages(nni_gconv.__path__, "nni_gconv."):
        file = module.module_finder.find_spec(module.name).origin
        if ">>> " in Path(file).read_text(encoding="utf-8"):
            found.append(module.name)
    return found


@pytest.fixture
def registries(monkeypatch):
    """What an example registers is gone after it."""
    monkeypatch.setattr(models, "_MODELS", dict(models._MODELS))
    monkeypatch.setattr(pruners, "_registered", dict(pruners._registered))


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "nni_gconv.inference.ratio" else [])
        for name in with_examples()
    ],
)
def test_the_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    found = doctest.DocTestFinder().find(importlib.import_module(name))
    assert any(one.examples for one in found)
    for one in found:
        torch.manual_seed(0)
        runner.run(one)
    assert runner.failures == 0


@pytest.mark.parametrize("name", sorted(set(nni_gconv.__all__) - {"__version__"}))
def test_every_public_name_has_an_example(name):
    assert ">>> " in getattr(nni_gconv, name).__doc__
