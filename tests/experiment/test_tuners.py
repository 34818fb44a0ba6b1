"""Our tuner and NNI's own, mended, under NNI's real manager."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIAL = Path(__file__).with_name("front_trial.py")
HALVES = {"_type": "choice", "_value": [1, 2], "macs": [0.3, 0.15]}


@pytest.fixture
def prepared(workshop):
    """A function that writes an experiment, and gives the workshop and the file."""

    def prepare(**changes):
        (workshop.folder / TRIAL.name).write_text(TRIAL.read_text())
        workshop.env["WARM_SCRIPT"] = TRIAL.name
        settings = {
            "trialCommand": f"python {TRIAL.name}",
            "searchSpace": dict.fromkeys("abc", HALVES),
            "tuner": {"className": "nni_gconv.tuner.ParetoTuner", "codeDirectory": "."},
            "trialConcurrency": 2,
        }
        return workshop, workshop.write(**{**settings, **changes})

    return prepare


def proposals(folder):
    """Parameters of all trials, and statuses, as NNI has them."""
    database = folder / "db" / "nni.sqlite"
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
        rows = connection.execute(
            "select trialJobId, data from TrialJobEvent where data is not null and data != ''"
        )
        given = {key: json.loads(data)["parameters"] for key, data in rows}
        ended = dict(
            connection.execute(
                "select trialJobId, event from TrialJobEvent where event in ('SUCCEEDED', 'FAILED')"
            )
        )
    return given, ended


def test_a_search_ends_when_everything_was_tried_and_keeps_what_it_learnt(tmp_path, prepared):
    earlier = [{"parameter": {"a": 1, "b": 1, "c": 1}, "value": 0.95}]
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    args = {"earlier": "earlier.json", "seed": 0, "warmup": 3}
    tuner = {
        "className": "nni_gconv.tuner.ParetoTuner", "codeDirectory": ".", "classArgs": args,
    }  # fmt: skip
    workshop, file = prepared(tuner=tuner)
    finished = workshop.run("create", str(file), "--json", timeout=300)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    given = {json.dumps(row["parameters"], sort_keys=True) for row in rows}
    assert len(rows) == len(given) == 7  # of 8; one was known
    (folder,) = workshop.experiments
    state = json.loads((folder / "checkpoint" / "pareto.json").read_text())
    assert len(state["trials"]) == 8
    assert list(state["weights"])[-1] == "a"
    assert [cost for cost, _ in state["front"]] == pytest.approx([0.55, 0.7, 0.85, 1.0])


def test_registered_and_resumed_with_nnictl(prepared):
    where = subprocess.run(
        [sys.executable, "-m", "nni_gconv.tuner"], capture_output=True, text=True, check=True
    ).stdout.strip()
    workshop, file = prepared(
        tuner={"name": "GConvPareto", "classArgs": {"seed": 1}}, trialConcurrency=1,
        maxTrialNumber=8,
    )  # fmt: skip
    workshop.nnictl("algo", "register", "--meta_path", where)
    listed = workshop.nnictl("algo", "list")
    assert all(name in listed for name in ("GConvPareto", "GConvHyperband", "GConvTPE"))
    from nni_gconv.experiment.checks.preflight import free_port

    workshop.env["TRIAL_SECONDS"] = "1"
    workshop.nnictl("create", "--config", str(file), "--port", str(free_port()))
    (folder,) = workshop.experiments
    try:
        wait_until(lambda: len(proposals(folder)[1]) >= 3)
        workshop.nnictl("stop", folder.name)
        before = proposals(folder)[1]
        workshop.nnictl("resume", folder.name, "--port", str(free_port()))
        wait_until(lambda: len(proposals(folder)[1]) >= 8)
    finally:
        workshop.nnictl("stop", folder.name)
    given, ended = proposals(folder)
    assert set(before) <= set(ended)
    assert set(ended.values()) == {"SUCCEEDED"}
    # Each of the eight once, over the stop.
    assert len({json.dumps(g, sort_keys=True) for g in given.values()}) == len(given) == 8


def wait_until(holds, timeout=240):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.3)
    raise AssertionError("nothing came of it")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Hyperband", {"R": 3, "eta": 3, "exec_mode": "serial"}),
        ("BOHB", {"min_budget": 1, "max_budget": 3}),
    ],
)
def test_successive_halving_runs_to_its_end(prepared, name, args):
    if name == "BOHB":
        pytest.importorskip("ConfigSpace")
        pytest.importorskip("statsmodels")
    plain = {"_type": "choice", "_value": [1, 2]}
    tuner = {
        "className": f"nni_gconv.tuner.{name}",
        "codeDirectory": ".",
        "classArgs": {"optimize_mode": "maximize", "budget_key": "finetune.epochs", **args},
    }
    workshop, file = prepared(
        tuner=tuner, maxTrialNumber=5, searchSpace=dict.fromkeys("abc", plain)
    )
    finished = workshop.run("create", str(file), "--json", timeout=300)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    assert {row["parameters"]["finetune.epochs"] for row in rows} == {1, 3}


def test_a_trial_that_an_assessor_stops_is_no_failure(tmp_path, prepared):
    (tmp_path / "mine.py").write_text(
        "from nni.assessor import Assessor, AssessResult\n"
        "class Second(Assessor):\n"
        "    def assess_trial(self, trial, history):\n"
        "        bad = history[-1]['default'] < 0.6\n"
        "        return AssessResult.Bad if bad else AssessResult.Good\n"
    )
    workshop, file = prepared(
        tuner={"className": "nni_gconv.tuner.TPE", "codeDirectory": "."},
        assessor={"className": "mine.Second", "codeDirectory": "."},
        searchSpace={"x": {"_type": "choice", "_value": [1, 2]}},
        trialCommand="python slow.py",
        maxTrialNumber=2,
    )
    (tmp_path / "slow.py").write_text(
        "import nni, time\nnni.get_next_parameter()\n"
        "nni.report_intermediate_result({'default': 0.5})\ntime.sleep(300)\n"
    )
    finished = workshop.run("create", str(file), "--json", timeout=250)
    assert finished.code == 0, finished.err
    assert [row["status"] for row in json.loads(finished.out)] == ["early stopped"] * 2


def test_an_exception_in_a_tuner_is_an_end(tmp_path, prepared):
    (tmp_path / "mine.py").write_text(
        "from nni.tuner import Tuner\n"
        "class Broken(Tuner):\n"
        "    def update_search_space(self, space): pass\n"
        "    def generate_parameters(self, number, **kwargs): raise RuntimeError('no idea')\n"
    )
    tuner = {"className": "mine.Broken", "codeDirectory": "."}
    workshop, file = prepared(tuner=tuner)
    finished = workshop.run("create", str(file), timeout=200)
    assert finished.code == 4
    assert "RuntimeError: no idea" in finished.err
