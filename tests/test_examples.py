"""Every script of examples/ runs as a reader would run it, and is named on their page."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NEEDS = {
    "timm_model": "timm",
    "lightning_callback": "pytorch_lightning",
    "huggingface_callback": "transformers",
}


def test_the_page_names_every_script():
    page = (FOLDER / "README.md").read_text()
    assert [s.name for s in SCRIPTS if f"({s.name})" not in page] == []


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script, tmp_path, warm):
    needed = NEEDS.get(script.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    command = [sys.executable, str(script)]
    env = warm({**os.environ}, script)
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout
