"""Reading the database of an experiment whose manager was killed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from nni_gconv.compat.nni_database import read_config, read_database, read_tried
from nni_gconv.errors import ConfigError

# As NNI makes it; then a change that is cut off after it has reached the file.
WRITER = """
import json, os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.executescript(
    "create table TrialJobEvent (timestamp integer, trialJobId text, event text, data text,"
    " logPath text, sequenceId integer, message text, environmentId text);"
    "create table MetricData (timestamp integer, trialJobId text, parameterId text, type text,"
    " sequence integer, data text);"
    "create table ExperimentProfile (params text, id text, execDuration integer,"
    " startTime integer, endTime integer, logDir text, nextSequenceId integer, revision integer);"
)
def event(trial, event, number=None, **chosen):
    data = json.dumps({"parameter_id": number, "parameters": chosen}) if chosen else None
    row = (1, trial, event, data, None, number, None, "local-env")
    connection.execute("insert into TrialJobEvent values (?,?,?,?,?,?,?,?)", row)
event("a", "WAITING", 0, x=1.0)
event("a", "SUCCEEDED")
event("b", "RUNNING", 1, x=2.0)
event("b", "ADD_RESUMED")
# Plain `nnictl resume` gives the id 1 once more.
event("c", "RUNNING", 1, x=3.0)
metric = (1, "b", "1", "FINAL", 0, json.dumps(json.dumps({"default": 0.5})))
connection.execute("insert into MetricData values (?,?,?,?,?,?)", metric)
profile = (json.dumps({"trialConcurrency": 1}), "exp", 0, 1, None, "", 2, 1)
connection.execute("insert into ExperimentProfile values (?,?,?,?,?,?,?,?)", profile)
connection.execute("pragma cache_size = 1")
connection.execute("begin")
for _ in range(200):
    event("half", "RUNNING", 9, x="-" * 4000)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "db").mkdir()
    file = tmp_path / "db" / "nni.sqlite"
    done = subprocess.run([sys.executable, "-c", WRITER, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.path.getsize(f"{file}-journal") > 0  # noqa: PTH202 - half a change is there
    return tmp_path


def test_half_a_change_is_undone(folder):
    trials = read_database(folder).trials
    assert {key: trial.status for key, trial in trials.items()} == {
        "a": "SUCCEEDED",
        "b": "WAITING",
        "c": "RUNNING",
    }
    assert read_config(folder) == {"trialConcurrency": 1}


def test_one_id_for_two_sets_of_parameters_is_no_mistake(folder):
    trials = read_database(folder).trials
    assert [trials[key].parameters for key in "abc"] == [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]
    assert trials["b"].metrics == {"default": 0.5}


def test_what_was_tried_keeps_its_kind_of_number(folder):
    assert json.dumps([entry["parameter"] for entry in read_tried(folder)]) == (
        '[{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]'
    )


def test_what_is_no_experiment_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "nni.sqlite").write_text("not a database, but long enough for its head" * 9)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_database(tmp_path)
