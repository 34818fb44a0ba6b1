"""The watcher against a manager that says what a test tells it to."""

import json
import os
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_recipes import tiny

from nni_gconv.experiment import progress_of
from nni_gconv.experiment import watch as module
from nni_gconv.experiment.manager import ManagerError, TrialState, parse_trial
from nni_gconv.experiment.progress import ExperimentView, running_lines, summary
from nni_gconv.experiment.watch import Ending, watch, with_progress
from nni_gconv.files import write_text
from nni_gconv.recipe import Recipe, TrialFolder
from nni_gconv.recipe.shared_dense import shared_folder
from nni_gconv.remote import Machine, MachineLinks
from nni_gconv.training import Distributed
from nni_gconv.yaml12 import write_yaml


class Process:
    def __init__(self, code=None):
        self.code = code

    def poll(self):
        return self.code


@dataclass
class Client:
    """Answers look by look; the last answer stays."""

    states: list
    made: int = 0
    looks: int = 0
    told: dict = field(default_factory=dict)

    def reported(self):
        return self.told

    def status(self):
        self.now = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        if isinstance(self.now, Exception):
            raise self.now
        return self.now[0], list(self.now[2:])

    def trials(self):
        return self.now[1]

    def generated(self):
        return self.made

    def trial_file(self, trial, name):
        return "fetched from afar\n"


@dataclass
class Experiment:
    client: Client
    folder: Path
    process: Process = field(default_factory=Process)
    id: str = "abc"
    log_start: int = 0
    ended_before: frozenset = frozenset()
    links: object = field(default_factory=lambda: MachineLinks([]))
    plan: object = None

    @property
    def log_folder(self):
        return self.folder / "log"


def trial(number, status, **metrics):
    if status == "SUCCEEDED":
        metrics = {"default": 0.5} | metrics
    return TrialState(f"t{number}", number, status, {}, metrics)


@pytest.fixture
def look(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE", 0.02)
    (tmp_path / "log").mkdir()

    def look(*states, made=0, code=None, log="", max_failed=5, listener=None, **more):
        (tmp_path / "log" / "dispatcher.log").write_text(log)
        experiment = Experiment(Client(list(states), made), tmp_path, Process(code), **more)
        return watch(
            experiment, poll_seconds=0.005, max_failed=max_failed, listener=listener
        ), experiment

    return look


def test_done_is_waited_for(look):
    good = [trial(0, "SUCCEEDED")]
    outcome, experiment = look(
        ("RUNNING", []), ("RUNNING", [trial(0, "RUNNING")]), ("NO_MORE_TRIAL", good), ("DONE", good)
    )
    assert (outcome.ending, outcome.exit_code) == (Ending.SUCCESS, 0)
    assert experiment.client.looks == 4


def test_running_trials_say_how_far_they_are(look, tmp_path):
    for key, epoch in (("t0", 3), ("t1", 1)):
        folder = tmp_path / "environments" / "local-env" / "trials" / key
        folder.mkdir(parents=True)
        (folder / "recipe.yml").write_text("finetune: {epochs: 8}\nprune: {method: fpgm}\n")
        lines = [
            json.dumps({"stage": "finetune", "epoch": n + 1, "val_accuracy": 0.5 + n / 8})
            for n in range(epoch)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yml").unlink()
    running = [trial(n, "RUNNING") for n in range(4)]
    seen = []
    good = [trial(n, "SUCCEEDED") for n in range(4)]
    client = Client([("RUNNING", running), ("DONE", good)], told={"t2": (5, 0.25)})
    experiment = Experiment(client, tmp_path)
    watch(experiment, poll_seconds=0.005, listener=lambda status, trials: seen.append(trials))
    assert [one.progress for one in seen[0]] == [
        "finetune, epoch 3 of 8, accuracy 75.00 %",
        "finetune, epoch 1, accuracy 50.00 %",
        "5 results, the last 0.25",
        "",
    ]
    assert running_lines(seen[0])[0].startswith("t0 finetune, epoch 3 of 8")
    assert running_lines(seen[-1]) == []


def test_what_runs_fits_a_terminal_of_80_columns(tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=80, color_system=None)
    view = ExperimentView(console)
    plan = SimpleNamespace(
        max_trials=12, varied=None, name="first", loopback=False, notes=(), minimize=False,
        config=SimpleNamespace(trial_concurrency=2),
    )  # fmt: skip
    experiment = SimpleNamespace(
        id="aB3dE", plan=plan, links=None, client=SimpleNamespace(url="http://127.0.0.1:1")
    )
    done = [replace(trial(n, "SUCCEEDED"), seconds=900.0) for n in range(9)]
    words = "finetune, epoch 38 of 40, accuracy 100.00 %"
    running = [replace(trial(n, "RUNNING"), progress=words) for n in (10, 11)]
    with view.showing(experiment):
        view.update("RUNNING", [*done, *running])
        view._progress.refresh()
    shown = console.file.getvalue()
    assert "…" not in shown
    for text in ("9/12 done", "about 22 minutes left", f"t10 {words}", f"t11 {words}", "0:00:0"):
        assert text in shown


@pytest.mark.parametrize("share", ["experiment", "elsewhere"])
def test_trials_that_share_their_training_say_how_far_it_is(tmp_path, monkeypatch, share):
    """The one that trains and those that wait, by the recipe that a trial keeps."""
    trials = tmp_path / "environments" / "local-env" / "trials"
    (trials / "t0").mkdir(parents=True)
    share = share if share == "experiment" else str(tmp_path / share)
    recipe = Recipe(**tiny(train={"epochs": 30, "optimizer": {"lr": 1e-3}, "share": share}))
    write_text(trials / "t0" / "recipe.yml", write_yaml(recipe.model_dump(mode="json")))
    monkeypatch.setattr("nni_gconv.compat.experiment_folder", lambda: trials.parent)
    shared = shared_folder(recipe, Distributed())
    shared.mkdir(parents=True)
    assert progress_of(trials / "t0") is None
    line = json.dumps({"stage": "train", "epoch": 4, "val_accuracy": 0.5})
    (shared / "metrics.jsonl").write_text(line + "\n")
    assert progress_of(trials / "t0") == "train, shared by trials, epoch 4 of 30, accuracy 50.00 %"
    (shared / "train.json").write_text("{}")
    assert progress_of(trials / "t0") is None
    (trials / "t0" / "stages.json").write_text('{"train": {"seconds": 61.5}}')
    assert progress_of(trials / "t0") == "train finished"
    (trials / "t1").mkdir()
    experiment = SimpleNamespace(folder=tmp_path)
    ended = [TrialState(name, 0, "SUCCEEDED", seconds=90.0) for name in ("t0", "t1")]
    assert [t.shared_seconds for t in with_progress(experiment, ended)] == [61.5, 0.0]


def test_what_a_trial_is_at_is_said_until_a_stage_or_an_epoch_is_done(tmp_path):
    recipe = Recipe(**tiny())
    folder = TrialFolder(tmp_path / "t0", recipe, Distributed())
    with folder:
        folder.note("prune, 3 of 8 layers")
        assert progress_of(folder.path) == "prune, 3 of 8 layers"
        folder.run("prune", dict)
        assert not (folder.path / ".under_way").exists()
        assert progress_of(folder.path) == "prune finished"
        assert json.loads((folder.path / "stages.json").read_text())["prune"]["files"] == {}
        folder.note("finetune, 3 of 9 steps of epoch 1/2")
        (folder.path / "metrics.jsonl").write_text('{"stage": "finetune", "epoch": 1}\n')
        os.utime(folder.path / ".under_way", (1e9, 1e9))  # an epoch has ended since
        assert progress_of(folder.path) == "finetune, epoch 1 of 2"


def test_a_trial_without_a_final_result_has_not_succeeded(look):
    silent = TrialState("t1", 1, "SUCCEEDED")
    outcome, _ = look(("DONE", [trial(0, "SUCCEEDED"), silent]))
    assert (outcome.ending, outcome.exit_code) == (Ending.TRIALS_FAILED, 3)
    assert outcome.message.startswith("1 of 2 trials ended without a final result: t1")


def test_no_more_trials_counts_only_when_all_that_were_made_have_ended(look):
    good = [trial(0, "SUCCEEDED"), trial(1, "SUCCEEDED")]
    outcome, experiment = look(
        ("TUNER_NO_MORE_TRIAL", good[:1]),  # one made and not yet submitted
        ("TUNER_NO_MORE_TRIAL", [good[0], trial(1, "RUNNING")]),
        ("RUNNING", good),  # the tuner thought again
        ("TUNER_NO_MORE_TRIAL", good),
        made=2,
    )
    assert outcome.ok
    assert experiment.client.looks > 4
    assert len(outcome.trials) == 2


def test_no_more_trials_with_a_failed_one_is_no_success(look):
    outcome, _ = look(("TUNER_NO_MORE_TRIAL", [trial(0, "SUCCEEDED"), trial(1, "FAILED")]), made=2)
    assert (outcome.ending, outcome.exit_code) == (Ending.TRIALS_FAILED, 3)
    assert outcome.message == "1 of 2 trials failed"
    assert outcome.failures == {"t1": "fetched from afar"}


def test_no_trial_at_all_is_no_success(look):
    assert look(("TUNER_NO_MORE_TRIAL", []))[0].ending is Ending.BROKEN


def test_an_error_says_nni_s_words(look):
    outcome, _ = look(("ERROR", [], "tuner did not connect"))
    assert outcome.ending is Ending.BROKEN
    assert "tuner did not connect" in outcome.message


def test_the_end_of_the_manager_is_told_apart(look):
    assert look(("RUNNING", []), code=0)[0].ending is Ending.STOPPED
    killed, _ = look(("RUNNING", []), code=-9)
    assert (killed.ending, killed.exit_code) == (Ending.BROKEN, 4)
    assert "SIGKILL" in killed.message
    assert "exit code 1" in look(("RUNNING", []), code=1)[0].message
    assert look(("STOPPING", []))[0].ending is Ending.STOPPED


def test_short_silence_is_borne_and_long_silence_is_not(look, monkeypatch):
    silent = ManagerError("does not answer")
    assert look(silent, silent, ("DONE", [trial(0, "SUCCEEDED")]))[0].ok
    monkeypatch.setattr(module, "_SILENCE", 0.02)
    outcome, _ = look(silent)
    assert outcome.ending is Ending.BROKEN
    assert "does not answer" in outcome.message


def test_when_every_trial_fails_it_gives_up(look):
    failed = [trial(number, "FAILED") for number in range(3)]
    running = [*failed, trial(3, "RUNNING")]
    outcome, _ = look(("RUNNING", running), max_failed=3)
    assert outcome.ending is Ending.TRIALS_FAILED
    assert "the first 3 trials have all failed" in outcome.message
    good = [*failed, trial(3, "SUCCEEDED")]
    outcome, _ = look(("RUNNING", good), ("DONE", good), max_failed=3)
    assert outcome.message == "3 of 4 trials failed"


def test_a_dead_tuner_ends_it_whatever_nni_says(look):
    log = (
        "[2024-01-01 00:00:00] INFO (nni.runtime.msg_dispatcher_base/MainThread) started\n"
        "[2024-01-01 00:00:01] ERROR (nni.runtime.msg_dispatcher_base/Thread-1) boom\n"
        "Traceback (most recent call last):\n"
        '  File "tuner.py", line 3, in receive_trial_result\n'
        "    raise ValueError('boom')\n"
        "ValueError: boom\n"
        "[2024-01-01 00:00:02] INFO (nni.runtime.msg_dispatcher_base/MainThread) exiting\n"
    )
    outcome, _ = look(("RUNNING", [trial(0, "RUNNING")]), log=log)
    assert outcome.ending is Ending.BROKEN
    assert 'ValueError: boom (File "tuner.py", line 3, in receive_trial_result)' in outcome.message


def test_ctrl_c_is_an_outcome(look):
    def interrupt(status, trials):
        raise KeyboardInterrupt

    outcome, _ = look(("RUNNING", [trial(0, "RUNNING")]), listener=interrupt)
    assert (outcome.ending, outcome.exit_code) == (Ending.INTERRUPTED, 130)
    assert len(outcome.trials) == 1


def test_a_trial_is_read_as_the_manager_writes_it():
    job = {
        "trialJobId": "aB3de",
        "status": "SUCCEEDED",
        "sequenceId": 4,
        "startTime": 1000,
        "endTime": 3500,
        "hyperParameters": ['{"parameter_id": 4, "parameters": {"prune.budget.macs": 0.5}}'],
        "finalMetricData": [{"data": '"{\\"default\\": 0.5, \\"macs\\": 3}"'}],
    }
    read = parse_trial(job)
    assert (read.id, read.number, read.seconds) == ("aB3de", 4, 2.5)
    assert read.parameters == {"prune.budget.macs": 0.5}
    assert read.metrics == {"default": 0.5, "macs": 3.0}
    assert parse_trial({**job, "finalMetricData": [{"data": '"0.25"'}]}).score == 0.25
    assert parse_trial({"trialJobId": "x", "status": "WAITING"}).metrics == {}


def test_the_best_is_the_smallest_where_that_is_looked_for():
    trials = [trial(0, "SUCCEEDED", default=0.1), trial(1, "SUCCEEDED", default=0.2)]
    assert summary("DONE", trials, 2).endswith("best 0.2000 (t1)")
    assert summary("DONE", trials, 2, minimize=True).endswith("best 0.1000 (t0)")


class Links:
    """Machines of which one is lost, in each look as a test says."""

    machines = (Machine("far", 22, "me"),)

    def __init__(self, *seconds):
        self.seconds = list(seconds)

    @property
    def all_lost_for(self):
        return self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]

    def lost(self):
        return [(self.machines[0], 0.0)]

    def lost_host(self, host):
        return "me@far" if host == "far" and self.all_lost_for else None


def plan(*platforms):
    return SimpleNamespace(services=[SimpleNamespace(platform=name) for name in platforms])


def test_an_experiment_without_a_machine_ends_after_a_while():
    look = [("RUNNING", [trial(0, "RUNNING")]), ("DONE", [trial(0, "SUCCEEDED")])]
    experiment = Experiment(Client(look), Path(), links=Links(181.0), plan=plan("remote"))
    outcome = watch(experiment, poll_seconds=0.005)
    assert outcome.ending is Ending.BROKEN
    assert "no machine is left: me@far lost" in outcome.message
    # It may be back before that, and this machine may be one of them.
    for links, platforms in ((Links(100.0), ["remote"]), (Links(181.0), ["local", "remote"])):
        experiment = Experiment(Client(look), Path(), links=links, plan=plan(*platforms))
        assert watch(experiment, poll_seconds=0.005).ok


def test_a_trial_that_went_with_its_machine_is_told_so_when_the_machine_is_back(look):
    gone = replace(trial(0, "KILLED"), place="far:~/nni-experiments/a", parameters={"x": 3})
    # Told apart by the database else, which this manager has not.
    outcome, _ = look(
        ("RUNNING", [gone]),
        ("RUNNING", [gone]),
        ("DONE", [gone, trial(1, "SUCCEEDED")]),
        links=Links(0.0, 0.0, 9.0, 9.0, 0.0),
        plan=plan("remote"),
    )
    assert outcome.ending is Ending.TRIALS_FAILED
    words = 'me@far was lost while it ran there; its parameters were {"x": 3}'
    assert outcome.failures["t0"] == words
