"""Trials that are killed at random moments end with the numbers and files of one that was not.

NNI_GCONV_EXAMPLES: how many kills of each signal (default 1).
"""

from __future__ import annotations

import random
import shlex
import signal
import time

import processes
import pytest
import yaml
from damage import EXAMPLES, RECIPE, numbers, sums, trial

from nni_gconv.files import _PART


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trials") / "whole"
    trial(folder)
    begun = time.monotonic()
    trial(folder.parent / "again")
    return sums(folder), numbers(folder), time.monotonic() - begun


def begun(folder, recipe):
    """Begin `nni-gconv run` in a process that has loaded torch already."""
    ready = folder.parent / "ready"
    ready.unlink(missing_ok=True)
    running = processes.start(
        "command_process.py", ready, "run", recipe, "--output", folder, "--quiet"
    )
    while not ready.exists():
        time.sleep(0.001)
    return running


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_killed_trials_end_like_whole_ones(whole, tmp_path, name):
    right, values, seconds = whole
    number = getattr(signal, name)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    draw, told = random.Random(name), 0
    for attempt in range(EXAMPLES or 1):
        folder = tmp_path / f"trial-{attempt}"
        running = begun(folder, recipe)
        time.sleep(draw.uniform(0.05, 0.9) * seconds)
        killed = running.signal(number)
        done = running.finish()
        words = done.said
        assert "Traceback" not in words
        if killed and done.code and number != signal.SIGKILL:
            again = f"go on with: nni-gconv run {shlex.quote(str(recipe))} --resume"
            assert words.count("\n") == 1, words
            assert again in words or "nothing was begun" in words
            told += 1
        trial(folder)
        assert sums(folder) == right, (name, attempt)
        assert numbers(folder) == values
        assert not [path for path in folder.rglob(".*") if _PART.fullmatch(path.name)]
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
