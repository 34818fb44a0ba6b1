"""Long work is never silent: a bar on a terminal, elsewhere a line a minute at most."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap

import pytest

from nni_gconv.display import Stages, counting, progress
from nni_gconv.training.logs import EpochProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def count(clock, pieces, seconds, **options):
    with counting("layers", pieces, **options) as done:
        for _ in range(pieces):
            clock[0] += seconds
            done()


def test_a_line_a_minute_where_no_terminal_is(clock, capsys):
    count(clock, 10, 25.0)
    lines = capsys.readouterr().err.splitlines()
    # Pieces end at 25 s, 50 s, 75 s ...: the first after each minute speaks.
    assert lines == [f"{n} of 10 layers" for n in (3, 6, 9)]


def test_short_work_says_nothing(clock, capsys):
    count(clock, 10, 1.0)
    count(clock, 10, 100.0, enabled=False)
    assert capsys.readouterr().err == ""


def test_work_inside_a_stage_speaks_in_its_name(clock, capsys):
    with Stages("shrink", enabled=True).stage("prune"):
        count(clock, 2, 61.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "shrink: prune: 1 of 2 layers"
    assert "prune" in lines[-1]


def test_a_stage_that_is_silent_is_so_inside(clock, capsys):
    with Stages("shrink", enabled=False).stage("prune"):
        count(clock, 2, 61.0)
    assert capsys.readouterr().err == ""


def test_an_epoch_that_lasts_says_so(clock, capsys):
    with (
        Stages("run", enabled=True).stage("train", bar=False),
        EpochProgress("train", 3, True) as bar,
    ):
        for epoch in (1, 2):
            bar.begin(epoch, 4)
            for _ in range(4):
                clock[0] += 31.0
                bar.step()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:-1] == [
        f"run: train: {n} of 4 steps of epoch {e}/3" for e in (1, 2) for n in (2, 4)
    ]


def test_notes_for_those_who_look_from_elsewhere(clock):
    notes = []
    with Stages("run", False, notes.append).stage("prune"):
        count(clock, 8, 2.0)
    assert notes == [f"prune, {n} of 8 layers" for n in (3, 6)]


@pytest.mark.slow
def test_one_bar_on_a_terminal():
    """Of a stage and the work inside it, on a real terminal."""
    code = """
        from nni_gconv.display import Stages, counting
        import time
        with Stages("shrink").stage("prune"):
            with counting("layers", 3) as done:
                for _ in range(3):
                    time.sleep(0.3)
                    done()
    """
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=theirs, env=env)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other side has closed
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    assert child.wait() == 0
    assert b"2 of 3 layers" in text
    assert b"shrink: prune" in text
    assert b"shrink: prune: layers" not in text  # no second bar
