"""What a trial does when NNI starts it again: same id, or a new one for the same recipe."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time

import psutil
import pytest
import yaml
from filelock import FileLock
from processes import run
from tiny_recipes import tiny

from nni_gconv import compat
from nni_gconv.recipe import load_recipe, run_recipe
from nni_gconv.recipe.adopt import adopt_unfinished
from nni_gconv.training.logs.metric_log import MetricLog


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Folder of a trial in an experiment, and the environment NNI would give it."""
    folder = tmp_path / "exp" / "environments" / "local-env" / "trials" / "aB3de"
    folder.mkdir(parents=True)
    for key, value in {
        "NNI_PLATFORM": "local",
        "NNI_OUTPUT_DIR": str(folder),
        "NNI_TRIAL_JOB_ID": "aB3de",
        "NNI_EXP_ID": "exp",
    }.items():
        monkeypatch.setenv(key, value)
    return folder


# -- another trial's folder -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A trial that was killed after the first epoch of fine-tuning."""
    folder = tmp_path_factory.mktemp("cut")
    whole = run_recipe(tiny(), output=folder / "whole", quiet=True)
    file = folder / "recipe.json"
    file.write_text(json.dumps(tiny()))
    killed = run("recipe_process.py", file, folder / "old", "finetune=7")
    assert killed.code == -9, killed.said
    return folder / "old", whole


@pytest.mark.slow
def test_a_new_trial_goes_on_where_one_of_its_recipe_was_cut_off(trial, cut_off, monkeypatch):
    old, whole = cut_off
    place = trial.parent / "old"
    place.mkdir()
    for entry in old.iterdir():
        target = place / entry.name
        if entry.is_dir():
            subprocess.run(["cp", "-r", entry, target], check=True)
        else:
            target.write_bytes(entry.read_bytes())
    (trial / "trial.log").write_text("of the new trial")
    (place / "trial.log").write_text("of the old trial")
    told, final = [], []
    monkeypatch.setattr(compat, "next_parameters", dict)
    monkeypatch.setattr(compat, "report_intermediate", told.append)
    monkeypatch.setattr(compat, "report_final", final.append)
    begun = (old / "metrics.jsonl").read_text()
    result = run_recipe(tiny(), quiet=True)
    assert result.output == trial
    assert result.metrics == whole.metrics
    # NNI's pages have a column for `default`; `accuracy` would be the same again.
    unseen = {"accuracy"} | {name for name in whole.metrics if name.startswith("top5")}
    assert final == [{k: v for k, v in whole.metrics.items() if k not in unseen}]
    assert final[0]["default"] == whole.metrics["accuracy"]
    assert (trial / "metrics.jsonl").read_text().startswith(begun)  # not trained again
    assert (trial / "trial.log").read_text() == "of the new trial"
    assert (place / "metrics.jsonl").read_text() == begun  # the old one stays as it was
    assert len(told) == 4  # a new trial tells NNI everything


def test_nothing_is_taken_from_trials_that_run_or_ended_or_differ(trial, tmp_path):
    recipe = load_recipe(tiny())
    content = recipe.model_dump(mode="json")

    def other(name, **changes):
        folder = trial.parent / name
        folder.mkdir()
        (folder / "recipe.yml").write_text(yaml.safe_dump({**content, **changes}))
        return folder

    other("differs", seed=5)
    (other("ended") / "result.json").write_text("{}")
    (trial.parent / "damaged").mkdir()
    (trial.parent / "damaged" / "recipe.yml").write_text("a: [")
    runs = other("runs")
    with FileLock(runs / ".lock"):
        assert adopt_unfinished(trial, recipe) is None
        assert list(trial.iterdir()) == []
    assert adopt_unfinished(trial, recipe) == runs
    assert (trial / "recipe.yml").is_file()
    assert not (trial / ".adopted").exists()
    assert adopt_unfinished(trial, recipe) is None  # it has begun


def test_a_copy_that_was_cut_off_is_made_again(trial):
    recipe = load_recipe(tiny())
    old = trial.parent / "old"
    (old / "train").mkdir(parents=True)
    (old / "train" / "checkpoint.pt").write_text("whole")
    (old / "recipe.yml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (trial / ".adopted" / "train").mkdir(parents=True)
    (trial / "train").mkdir()
    (trial / "train" / "checkpoint.pt").write_text("ha")
    assert adopt_unfinished(trial, recipe) == old
    assert (trial / "train" / "checkpoint.pt").read_text() == "whole"


# -- what NNI has been told -----------------------------------------------------------------------

RECORDS = [{"loss": 1.0, "val_accuracy": n / 8, "lr": 0.1} for n in range(1, 5)]


@pytest.fixture
def sent(monkeypatch):
    import nni
    import nni.trial

    found = []

    def send(metrics):
        found.append((nni.trial._intermediate_seq, metrics["default"]))
        nni.trial._intermediate_seq += 1

    monkeypatch.setattr(compat.nni_trial, "next_parameters", dict)
    monkeypatch.setattr(nni, "report_intermediate_result", send)
    monkeypatch.setattr(nni.trial, "_intermediate_seq", 0)
    return found


def write(trial, epochs):
    with MetricLog(trial, tensorboard=False) as log:
        for epoch in epochs:
            log.write("train", epoch, RECORDS[epoch - 1])


def again(monkeypatch):
    import nni.trial

    monkeypatch.setattr(nni.trial, "_intermediate_seq", 0)  # a new process


def test_the_same_trial_tells_nni_only_what_is_new(trial, sent, monkeypatch):
    write(trial, (1, 2))
    again(monkeypatch)
    write(trial, (2, 3))
    assert sent == [(0, 0.125), (1, 0.25), (2, 0.375)]
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "other")  # for which everything is new
    again(monkeypatch)
    write(trial, (4,))
    assert sent[3:] == [(0, 0.125), (1, 0.25), (2, 0.375), (3, 0.5)]


def test_the_manager_is_believed_where_it_is_on_this_machine(trial, sent):
    write(trial, (1, 2))
    database = trial.parents[3] / "db" / "nni.sqlite"
    database.parent.mkdir()
    with sqlite3.connect(database) as connection:
        connection.execute("create table MetricData (trialJobId, type, sequence)")
        # The manager died before it had the second one.
        connection.execute("insert into MetricData values ('aB3de', 'PERIODICAL', 0)")
    connection.close()
    sent.clear()
    import nni.trial

    nni.trial._intermediate_seq = 0
    write(trial, (3,))
    assert sent == [(1, 0.25), (2, 0.375)]


def test_a_stage_that_begins_again_does_not_tell_an_epoch_twice(trial, sent, monkeypatch):
    write(trial, (1, 2))
    again(monkeypatch)
    with MetricLog(trial, tensorboard=False) as log:
        log.forget("train")
        for epoch in (1, 2, 3):
            log.write("train", epoch, RECORDS[epoch - 1])
    assert [number for number, _ in sent] == [0, 1, 2]


# -- what an earlier manager left running ---------------------------------------------------------


@pytest.mark.slow
def test_the_older_process_of_the_same_trial_is_ended_and_no_other(trial):
    sleep = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
    kinds = {
        "same": {},
        "another trial": {"NNI_TRIAL_JOB_ID": "zzzzz"},
        "another experiment": {"NNI_EXP_ID": "zzz"},
    }
    processes = {
        name: subprocess.Popen(
            sleep, env={**os.environ, **env}, stdout=subprocess.PIPE, start_new_session=True
        )
        for name, env in kinds.items()
    }
    ours = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "from nni_gconv import compat\n"
            "print(compat.end_leftovers(), child.poll(), flush=True)\n"
            "child.kill()",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # As its own parent would; what has ended and was not asked for looks as if it lived.
    threading.Thread(target=processes["same"].wait, daemon=True).start()
    try:
        for process in processes.values():
            process.stdout.read(1)
        assert ours.communicate(timeout=120)[0].split() == ["1", "None"]
        deadline = time.monotonic() + 30
        while processes["same"].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [p.poll() is None for p in processes.values()] == [False, True, True]
        assert psutil.pid_exists(os.getpid())
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
            process.stdout.close()
