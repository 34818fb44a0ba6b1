"""An experiment that was cut off goes on: same numbers, nothing lost, nothing twice."""

import contextlib
import json
import signal
import sqlite3
import time

import psutil
import pytest
import yaml

from nni_gconv.compat.nni_trial import rounded
from nni_gconv.experiment import ManagerClient, ManagerError
from nni_gconv.experiment.checks.preflight import free_port
from nni_gconv.experiment.running import end_processes
from nni_gconv.recipe import run_recipe
from nni_gconv.recipe.load import load_recipe
from nni_gconv.recipe.run import told_to_nni

from .conftest import Workshop, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RECIPE = {
    "device": "cpu",
    "threads": 1,
    "model": {"name": "resnet8", "options": {"width": 0.25}},
    "data": {"name": "digits", "train_size": 100, "test_size": 40, "batch_size": 8},
    "train": {"epochs": 3, "optimizer": {"lr": 0.05}},
    "prune": {"method": "fpgm", "budget": {"macs": 0.6}},
    "finetune": {"epochs": 2},
    "report": {"latency": None},
}
EPOCHS = 5
# `nni-gconv run` whose epochs take long without keeping the machine busy.
TRIAL = """
import time
from nni_gconv.cli import main
from nni_gconv.training.logs.metric_log import MetricLog

write = MetricLog.write

def slowly(self, *args):
    fresh = write(self, *args)
    if fresh:
        time.sleep(1)
    return fresh

MetricLog.write = slowly
main(["run", "recipe.yml", "--quiet"])
"""
VARIED = "train.optimizer.weight_decay"
# 0.0 is a float that JavaScript writes as 0: a grid must still know that it has been tried.
SPACE = {VARIED: {"_type": "choice", "_value": [0.0, 0.001, 0.01]}}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What each set of parameters comes to when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("expected")
    results = {}
    for value in SPACE[VARIED]["_value"]:
        given = {VARIED: value}
        result = run_recipe(RECIPE, overrides=given, output=folder / str(value), quiet=True)
        results[value] = rounded(told_to_nni(load_recipe(RECIPE), result))
    return results


class Interrupted(Workshop):
    """An experiment of three real trials, one at a time."""

    def prepare(self, **changes):
        (self.folder / "recipe.yml").write_text(yaml.safe_dump(RECIPE))
        (self.folder / "trial.py").write_text(TRIAL)
        self.env["OMP_NUM_THREADS"] = "1"
        return self.write(
            trialCommand="python trial.py",
            trialConcurrency=1,
            searchSpace=SPACE,
            maxTrialNumber=3,
            **changes,
        )

    @property
    def experiment(self):
        (folder,) = self.experiments
        return folder

    @property
    def manager(self):
        registry = json.loads((self.home / "nni-experiments/.experiment").read_text())
        return psutil.Process(registry[self.experiment.name]["pid"])

    def status(self):
        """What became of each trial, by NNI's own words, in the order of submission."""
        with contextlib.closing(sqlite3.connect(self.experiment / "db" / "nni.sqlite")) as db:
            return dict(
                db.execute("select trialJobId, event from TrialJobEvent order by rowid").fetchall()
            )

    def wait_until(self, ready, what, timeout=900):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, sqlite3.Error, ValueError, ManagerError):
                if ready():
                    return
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come in {timeout} s")

    def wait_in_the_middle(self, ended, stage="train", epoch=2):
        """Wait until so many trials have ended and the next has finished an epoch of a stage."""

        def there():
            state = self.status()
            if len(state) <= ended or list(state.values())[:ended] != ["SUCCEEDED"] * ended:
                return False
            return any(
                (record["stage"], record["epoch"]) == (stage, epoch)
                for record in self.records(list(state)[ended])
            )

        self.wait_until(there, f"epoch {epoch} of {stage} of trial {ended}")
        return list(self.status())[ended]

    def trial(self, trial):
        return self.experiment / "environments" / "local-env" / "trials" / trial

    def records(self, trial):
        text = (self.trial(trial) / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def wait_done(self, port):
        client = ManagerClient(port)
        self.wait_until(lambda: client.status()[0] == "DONE", "DONE")

    def check(self, expected):
        """Every trial once, every number as without an interruption."""
        state = self.status()
        assert list(state.values()) == ["SUCCEEDED"] * 3
        with contextlib.closing(sqlite3.connect(self.experiment / "db" / "nni.sqlite")) as db:
            metrics = db.execute(
                "select trialJobId, type, sequence, data from MetricData order by rowid"
            ).fetchall()
            given = dict(
                db.execute("select trialJobId, data from TrialJobEvent where data <> ''").fetchall()
            )
        found = {}
        for trial in state:
            value = json.loads(given[trial])["parameters"][VARIED]
            # One that was cut off between its result and its end tells it again; NNI counts one.
            (final,) = {m[3] for m in metrics if m[:2] == (trial, "FINAL")}
            found[value] = json.loads(json.loads(final))
            told = [m[2] for m in metrics if m[:2] == (trial, "PERIODICAL")]
            assert told == list(range(EPOCHS))
            steps = [(r["stage"], r["epoch"]) for r in self.records(trial)]
            assert len(steps) == len(set(steps)) == EPOCHS
        assert found == expected  # bit for bit


def kill(processes):
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


@pytest.fixture
def interrupted(tmp_path, warm):
    workshop = Interrupted(tmp_path)
    workshop.env = warm(workshop.env, "trial.py")
    yield workshop
    for folder in workshop.experiments:
        end_processes(folder)
        with contextlib.suppress(psutil.Error, KeyError):
            workshop.manager.kill()


def test_a_killed_command_a_reboot_and_a_ctrl_c_lose_nothing(interrupted, expected):
    process = interrupted.start("create", str(interrupted.prepare()))
    first = interrupted.wait_in_the_middle(1)
    done = next(iter(interrupted.status()))
    folder = interrupted.experiment
    kept = (interrupted.trial(done) / "result.json").stat().st_mtime_ns
    # The command alone is killed; the manager and its trial run on.
    process.kill()
    interrupted.finish(process)
    assert interrupted.manager.is_running()
    process = interrupted.start("resume", folder.name)
    again = interrupted.wait_in_the_middle(1)
    assert again == first
    # The machine goes down: the launcher, the manager, the tuner and the trial, all at once.
    process.kill()
    kill([p for p in marked() if p.environ()["NNI_GCONV_EXPERIMENT"] == folder.name])
    interrupted.finish(process)
    before = interrupted.records(first)
    assert 2 <= len(before) < EPOCHS

    process = interrupted.start("resume", folder.name)
    last = interrupted.wait_in_the_middle(2, "finetune", 1)
    process.send_signal(signal.SIGINT)
    stopped = interrupted.finish(process, timeout=300)
    assert stopped.code == 130, stopped.err
    assert interrupted.records(first)[: len(before)] == before  # not trained again
    before = interrupted.records(last)

    finished = interrupted.run("resume", str(folder), "--json", timeout=900)
    assert finished.code == 0, finished.err
    assert "3 trials succeeded" in finished.err
    assert "ssh -N -L" in finished.err
    rows = json.loads(finished.out)
    assert [row["trial"] for row in rows] == list(interrupted.status())
    assert interrupted.records(last)[: len(before)] == before
    assert (interrupted.trial(done) / "result.json").stat().st_mtime_ns == kept
    interrupted.check(expected)


def test_plain_nnictl_goes_on_too(interrupted, expected):
    interrupted.env["NNI_GCONV_TUNER_SECONDS"] = "300"
    port = str(free_port())
    # NNI's own grid would make the trial that is cut off a second time.
    grid = {"className": "nni_gconv.tuner.GridSearch", "codeDirectory": "."}
    file = interrupted.prepare(tuner=grid)
    interrupted.nnictl("create", "--config", str(file), "--port", port)
    first = interrupted.wait_in_the_middle(0)
    folder = interrupted.experiment
    kill([interrupted.manager])  # and the trial, left alone, is still there
    # So is the tuner, which would connect to a new manager of the old port and break it.
    port = str(free_port())
    interrupted.nnictl("resume", folder.name, "--port", port)
    interrupted.wait_in_the_middle(1, epoch=1)
    assert next(iter(interrupted.status())) == first
    interrupted.nnictl("stop", folder.name)
    interrupted.nnictl("resume", folder.name, "--port", port)
    interrupted.wait_done(int(port))
    interrupted.nnictl("stop", folder.name)
    interrupted.check(expected)
