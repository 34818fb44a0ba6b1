"""What a machine elsewhere may write here: its own trials in its own environment, nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nni_gconv.remote import fetch_machine


class Files:
    """SFTP to a folder of this machine."""

    def get_channel(self):
        return SimpleNamespace(settimeout=lambda seconds: None)

    def close(self):
        pass

    def listdir_attr(self, path):
        def attributes(entry):
            return SimpleNamespace(filename=entry.name, st_mode=entry.lstat().st_mode)

        return [attributes(entry) for entry in Path(path).iterdir()]

    def stat(self, path):
        return Path(path).stat()

    def open(self, path, mode):
        return _Reader(Path(path).open(mode))


class _Reader:
    def __init__(self, file):
        self._file, self.read, self.seek = file, file.read, file.seek

    def prefetch(self, size):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


class Machine:
    """A machine with a home in a folder."""

    def __init__(self, home, label):
        self.home = home
        self.machine = SimpleNamespace(label=label)
        self.client = SimpleNamespace(open_sftp=Files)

    def run(self, command):
        return SimpleNamespace(out=str(self.home))

    def leaves(self, environment, trial, text, name="result.json"):
        folder = self.home / "nni-experiments/exp1/environments" / environment / "trials" / trial
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def experiment(tmp_path):
    """An experiment here, with a local trial."""
    folder = tmp_path / "here/exp1"
    mine = folder / "environments/local-env/trials/mine1"
    mine.mkdir(parents=True)
    (mine / "result.json").write_text("mine")
    return folder


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_text()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def test_its_own_trials_come(tmp_path, experiment):
    machine = Machine(tmp_path / "far", "user@far")
    machine.leaves("remote-worker1", "far1", "far")
    report = fetch_machine(machine, "exp1", experiment)
    assert (report.files, report.problems, report.trials) == (1, [], {"far1"})
    assert fetch_machine(machine, "exp1", experiment).problems == []
    machine.leaves("remote-worker3", "far1", "far again")  # it was lost, and has come back
    report = fetch_machine(machine, "exp1", experiment)
    assert (report.files, report.problems) == (1, [])


@pytest.mark.parametrize(
    "name",
    ["local-env", "mine-env", "hybrid", "remote-worker", "remote-worker1x", "remote-worker1\n"],
)
@pytest.mark.parametrize("trial", ["mine1", "new1"])
def test_environments_that_are_not_its_own_are_left_there(tmp_path, experiment, name, trial):
    """A machine that names its environment like the local one would write into the local one."""
    before = content(experiment)
    machine = Machine(tmp_path / "far", "user@far")
    machine.leaves(name, trial, "forged")
    machine.leaves(name, trial, "forged", "recipe.yml")
    report = fetch_machine(machine, "exp1", experiment)
    assert content(experiment) == before
    assert report.files == 0
    (problem,) = report.problems
    assert "is none of a machine elsewhere" in problem
    assert "\n" not in problem


def test_another_machines_environment_is_not_its_own(tmp_path, experiment):
    first, second = (Machine(tmp_path / name, f"user@{name}") for name in ("one", "two"))
    first.leaves("remote-worker1", "far1", "first")
    second.leaves("remote-worker1", "far1", "forged")
    second.leaves("remote-worker1", "far2", "forged")
    fetch_machine(first, "exp1", experiment)
    before = content(experiment)
    report = fetch_machine(second, "exp1", experiment)
    assert content(experiment) == before
    assert report.problems == ["user@two: environment 'remote-worker1' is of user@one; left there"]


@pytest.mark.parametrize("trial", ["mine1", "far1"])
def test_a_trial_that_ran_elsewhere_is_not_its_own(tmp_path, experiment, trial):
    """Results are looked up by the trial's name, in whatever environment it is."""
    first, second = (Machine(tmp_path / name, f"user@{name}") for name in ("one", "two"))
    first.leaves("remote-worker1", "far1", "first")
    fetch_machine(first, "exp1", experiment)
    before = content(experiment)
    second.leaves("remote-worker2", trial, "forged")
    report = fetch_machine(second, "exp1", experiment)
    assert content(experiment) == before
    assert report.problems == [f"user@two: trial {trial} ran elsewhere; left there"]
    assert report.trials == set()


def test_a_link_here_is_not_followed(tmp_path, experiment):
    outside = tmp_path / "outside"
    outside.mkdir()
    (experiment / "environments/remote-worker1").symlink_to(outside)
    machine = Machine(tmp_path / "far", "user@far")
    machine.leaves("remote-worker1", "far1", "far")
    assert "is a link" in fetch_machine(machine, "exp1", experiment).problems[0]
    assert not list(outside.iterdir())
