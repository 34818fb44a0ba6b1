"""The package itself: quiet, light, and all that it names is there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import nni_gconv
from nni_gconv.errors import ConfigError


def fresh(code):
    """Run code in a fresh interpreter; return what it wrote."""
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_prints_nothing_and_loads_nothing_heavy():
    heavy = {"torch", "nni", "numpy", "scipy", "pydantic", "matplotlib"}
    assert fresh(f"import sys, nni_gconv\nassert not {heavy} & set(sys.modules)") == ""


@pytest.mark.slow
def test_tables_and_plots_of_trials_need_no_torch():
    code = (
        "import sys, nni_gconv.report\nassert not {'torch', 'nni', 'matplotlib'} & set(sys.modules)"
    )
    assert fresh(code) == ""


@pytest.mark.slow
def test_a_public_name_loads_its_part_quietly():
    code = (
        "from nni_gconv import Recipe, save_compact\nassert Recipe.model_fields\n"
        "from nni_gconv import FPGMPruner, ModelSpeedup, run_recipe"
    )
    assert fresh(code) == ""


@pytest.mark.parametrize("name", nni_gconv.__all__)
def test_every_public_name_is_there(name):
    assert getattr(nni_gconv, name) is not None
    assert name in dir(nni_gconv)


def test_what_is_public():
    assert {
        "FPGMPruner", "ModelSpeedup", "profile", "save_compact", "load_compact", "export_model",
        "Recipe", "run_recipe",
    } <= set(nni_gconv.__all__)  # fmt: skip
    assert set(nni_gconv._PUBLIC) == set(nni_gconv.__all__) - {"__version__"}
    assert nni_gconv.__all__ == sorted(nni_gconv.__all__, key=str)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'FPGMPrunr'"):
        nni_gconv.FPGMPrunr  # noqa: B018


@pytest.mark.parametrize(
    "call",
    [
        lambda x, path: nni_gconv.ModelSpeedup(None, x, {}),
        lambda x, path: nni_gconv.save_compact(None, path),
        lambda x, path: nni_gconv.export_model(None, x, path),
        lambda x, path: nni_gconv.profile(None, x),
    ],
)
def test_what_is_no_model_is_said(call, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module, got NoneType"):
        call(torch.zeros(1, 3, 8, 8), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
