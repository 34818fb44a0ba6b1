"""The blocks of docs/python.md are run as they stand, in their order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nni_gconv.compat import write_launch_files
from nni_gconv.experiment.checks.preflight import free_port

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


# NNI's own start gives its manager three seconds, which a busy machine may not.
PATIENCE = (
    "import nni.experiment.launcher as own\nown._check_rest_server.__defaults__ = (90, None)\n"
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_runs(tmp_path, warm):
    for text in blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(text)
    (tmp_path / "shims").mkdir()
    write_launch_files(tmp_path / "shims")
    script = tmp_path / "page.py"
    code = "\n".join(blocks("python")).replace("18080", str(free_port()))
    script.write_text(PATIENCE + code)
    env = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
        "NNI_CONFIG_DIR": str(tmp_path / "config"),
        # For NNI's own start: what our launcher does for its manager.
        "PATH": f"{tmp_path / 'shims' / 'bin'}:{os.environ['PATH']}",
        "NODE_OPTIONS": f"--require {tmp_path / 'shims' / 'bind.js'} "
        f"--require {tmp_path / 'shims' / 'patience.js'}",
    }
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=warm(env, script),
        capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 trials succeeded") == 3
    assert done.stdout.count("'prune.budget.macs': 0.5") == 2  # our table and NNI's export
    assert (tmp_path / "accuracy_vs_macs.png").stat().st_size > 5000
