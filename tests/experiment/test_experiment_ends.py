"""Every way in which an experiment can end, with NNI's real manager."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
from pathlib import Path

import pytest

from .conftest import TRIAL, Workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def done(tmp_path_factory, warm):
    """An experiment of three trials that ends as DONE; several tests look at what it left."""
    workshop = Workshop(tmp_path_factory.mktemp("done"))
    workshop.env = warm({**workshop.env, "SLOW_FIRST": "1"}, TRIAL.name)
    space = {"x": {"_type": "choice", "_value": ["link", 2, 3]}}
    file = workshop.write(maxTrialNumber=3, searchSpace=space)
    return workshop, workshop.run("create", str(file), "--json")


def test_done_succeeds_and_standard_output_is_only_json(done):
    workshop, finished = done
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    assert len(rows) == 3
    assert sorted(row["accuracy"] for row in rows) == pytest.approx([0.6, 0.7, 0.8])
    assert {row["status"] for row in rows} == {"succeeded"}
    assert "3 trials succeeded" in finished.err
    (folder,) = workshop.experiments
    assert (folder / "report" / "accuracy_vs_macs.png").stat().st_size > 5000
    assert (folder / "report" / "trials.csv").read_text().count("\n") == 4
    assert "</html>" in (folder / "report" / "report.html").read_text()


def test_nothing_is_left_running(done, still_running):
    workshop, _ = done
    (folder,) = workshop.experiments
    assert still_running(folder) == []


def test_a_trial_gets_the_parameters_that_nni_shows_for_it(done):
    # NNI alone hands them out in the order of asking, and here the first trial asks last.
    workshop, finished = done
    (folder,) = workshop.experiments
    with contextlib.closing(sqlite3.connect(folder / "db" / "nni.sqlite")) as connection:
        shown = dict(
            connection.execute("select trialJobId, data from TrialJobEvent where data is not null")
        )
    assert len(shown) == 3
    for row in json.loads(finished.out):
        given = json.loads((Path(row["folder"]) / "given.json").read_text())
        assert json.loads(shown[row["trial"]])["parameters"] == given
        assert row["parameters"] == given


def test_a_trial_knows_how_many_share_the_machine(done):
    _, finished = done
    folders = [Path(row["folder"]) for row in json.loads(finished.out)]
    assert [json.loads((folder / "at_a_time.json").read_text()) for folder in folders] == [2] * 3


def test_the_manager_is_on_loopback_only(done):
    _, finished = done
    seen = [
        json.loads((Path(row["folder"]) / "reachable.json").read_text())
        for row in json.loads(finished.out)
    ]
    assert all(found["127.0.0.1"] for found in seen)
    others = {ip for found in seen for ip in found if not ip.startswith("127.")}
    if not others:
        pytest.skip("this machine has no other address")
    assert not any(found[ip] for found in seen for ip in others)


def test_the_tensorboard_button_finds_the_events(done):
    workshop, _ = done
    (folder,) = workshop.experiments
    # The folder NNI opens, see `startTensorboardTask` of its manager.
    (events,) = folder.glob("trials/*/output/tensorboard/events.*")
    assert events.read_text() == "event"


def test_a_grid_that_runs_out_is_a_success(workshop):
    # NNI says TUNER_NO_MORE_TRIAL and never DONE, although this grid is smaller than the limit.
    space = {"x": {"_type": "choice", "_value": [1, 2]}}
    finished = workshop.run("create", str(workshop.write(searchSpace=space, maxTrialNumber=9)))
    assert finished.code == 0, finished.err
    assert "2 trials succeeded" in finished.err
    assert "acc. %" in finished.out


def test_a_tuner_that_raises_ends_it_with_its_words(workshop, still_running):
    (workshop.folder / "sulky.py").write_text(
        "from nni.tuner import Tuner\n"
        "class SulkyTuner(Tuner):\n"
        "    def update_search_space(self, space): pass\n"
        "    def generate_parameters(self, number, **kwargs): return {'x': 1}\n"
        "    def receive_trial_result(self, number, parameters, value, **kwargs):\n"
        "        raise RuntimeError('I do not like ' + str(value['default']))\n"
    )
    tuner = {"className": "sulky.SulkyTuner", "codeDirectory": "."}
    finished = workshop.run("create", str(workshop.write(tuner=tuner, maxTrialNumber=5)))
    assert finished.code == 4, finished.err
    assert "RuntimeError: I do not like 0.8" in finished.err
    assert "sulky.py" in finished.err
    assert "dispatcher.log" in finished.err
    assert still_running(workshop.experiments[0]) == []


def test_failed_and_killed_trials_are_counted_and_named(workshop):
    space = {"x": {"_type": "choice", "_value": [1, "fail", "killed"]}}
    finished = workshop.run("create", str(workshop.write(searchSpace=space)), "--json")
    assert finished.code == 3, finished.err
    assert "2 of 3 trials failed" in finished.err
    rows = {row["parameters"]["x"]: row for row in json.loads(finished.out)}
    assert {x: row["status"] for x, row in rows.items()} == {
        1: "succeeded",
        "fail": "failed",
        "killed": "killed",
    }
    assert f"({rows['fail']['trial']}) failed" in finished.err
    assert "  | the stand-in could not go on" in finished.err
    assert rows["fail"]["error"] == "the stand-in could not go on"


@pytest.mark.parametrize("how", ["manager killed", "Ctrl-C", "terminal closed"])
def test_an_end_by_force_leaves_nothing(cold_workshop, still_running, how):
    workshop = cold_workshop
    space = {"x": {"_type": "choice", "_value": ["sleep"]}}
    file = workshop.write(searchSpace=space, trialConcurrency=1)
    process = workshop.start("create", str(file), start_new_session=True)
    try:
        folder = workshop.wait_for("[!_]*/environments/*/trials/*/sleeping").parents[4]
        if how != "manager killed":  # a terminal tells all that it runs
            os.killpg(process.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGHUP)
        else:
            registry = json.loads((workshop.home / "nni-experiments/.experiment").read_text())
            os.kill(registry[folder.name]["pid"], signal.SIGKILL)
    finally:
        finished = workshop.finish(process)
    if how != "manager killed":
        assert finished.code == 130, finished.err
        said = [line for line in finished.err.splitlines() if "interrupted" in line]
        assert said == [f"ended: interrupted; go on with: nni-gconv resume {folder.name}"]
    else:
        assert finished.code == 4, finished.err
        assert "NNI's manager ended by SIGKILL" in finished.err
    assert still_running(folder) == []


def test_the_web_ui_can_be_kept_and_stopped_with_nnictl(workshop, still_running):
    space = {"x": {"_type": "choice", "_value": [1]}}
    file = workshop.write(searchSpace=space, maxTrialNumber=1)
    finished = workshop.run("create", str(file), "--keep-ui")
    (folder,) = workshop.experiments
    try:
        assert finished.code == 0, finished.err
        assert f"nnictl stop {folder.name}" in finished.err
        port = json.loads((workshop.home / "nni-experiments/.experiment").read_text())[folder.name][
            "port"
        ]
        assert f"http://127.0.0.1:{port}" in finished.err
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        workshop.nnictl("stop", folder.name)
        assert still_running(folder) == []
    finally:
        for process in still_running(folder):
            process.kill()


def test_a_tuner_that_is_slow_to_start_is_waited_for(workshop):
    # NNI gives it ten seconds; loading torch on a busy machine takes longer.
    (workshop.folder / "late.py").write_text(
        "import time\n"
        "from nni.algorithms.hpo.random_tuner import RandomTuner\n"
        "time.sleep(12)\n"
        "class Late(RandomTuner): pass\n"
    )
    tuner = {"className": "late.Late", "codeDirectory": "."}
    finished = workshop.run("create", str(workshop.write(tuner=tuner, maxTrialNumber=1)))
    assert finished.code == 0, finished.err
    assert "ssh -N -L" in finished.err


def events(folder):
    with contextlib.closing(sqlite3.connect(folder / "db" / "nni.sqlite")) as connection:
        return connection.execute(
            "select trialJobId, sequenceId, data from TrialJobEvent where data <> ''"
        ).fetchall()


@pytest.mark.timeout(500)
def test_failed_trials_stay_failed_or_go_on_as_asked_and_more_can_follow(workshop):
    space = {"x": {"_type": "choice", "_value": ["flaky", 1.0, 3]}}
    file = workshop.write(searchSpace=space, trialConcurrency=1, maxTrialNumber=2)
    finished = workshop.run("create", str(file))
    assert finished.code == 3, finished.err
    (folder,) = workshop.experiments
    first = {trial: number for trial, number, _ in events(folder)}
    assert sorted(first.values()) == [0, 1]

    finished = workshop.run("resume", folder.name, "--max-trials", "3", timeout=150)
    assert finished.code == 3, finished.err
    assert "1 of 3 trials failed" in finished.err
    finished = workshop.run("resume", str(folder), "--retry-failed", "--json", timeout=150)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    # The grid's third point, and none of the first two again, though NNI writes 1.0 as 1.
    assert [row["parameters"]["x"] for row in rows] == ["flaky", 1.0, 3]
    found = {trial: number for trial, number, _ in events(folder)}
    assert sorted(found.values()) == [0, 1, 2]
    assert first.items() <= found.items()
    parameters = {json.loads(data)["parameter_id"] for _, _, data in events(folder)}
    assert len(parameters) == 3


def test_a_running_or_unknown_experiment_is_not_resumed(workshop):
    space = {"x": {"_type": "choice", "_value": ["sleep"]}}
    process = workshop.start("create", str(workshop.write(searchSpace=space)))
    try:
        folder = workshop.wait_for("[!_]*/environments/*/trials/*/sleeping").parents[4]
        running = workshop.run("resume", folder.name)
        wrong = workshop.run("resume", folder.name[:-1] + "_")
    finally:
        process.send_signal(signal.SIGINT)
        workshop.finish(process)
    assert (running.code, wrong.code) == (2, 2)
    assert running.err.count("\n") == wrong.err.count("\n") == 1
    assert f"{folder.name} is still running" in running.err
    assert f"nnictl stop {folder.name}" in running.err
    assert f"did you mean '{folder.name}'" in wrong.err
