"""Reading settings does not load torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_settings_are_read_without_torch():
    code = (
        "import sys; import nni_gconv.training.settings; "
        "from nni_gconv.training.data import DataSettings; "
        "print([m for m in ('torch', 'torchvision', 'nni', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_a_recipe_is_read_without_nni():
    code = "import sys; import nni_gconv.recipe.load; sys.exit('nni' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
