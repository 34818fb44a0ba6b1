"""A stand-in trial and the real command line, in a home of their own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from nni_gconv.compat import EXPERIMENT_MARK, write_launch_files

TRIAL = Path(__file__).parent / "stand_in_trial.py"
ROOT = Path(__file__).parents[2]
NNICTL = ROOT / "tests" / "helpers" / "patient_nnictl.py"

BASE = {
    "experimentName": "stand-in",
    "trialCommand": f"python {TRIAL.name}",
    "trialCodeDirectory": ".",
    "trialConcurrency": 2,
    "searchSpace": {"x": {"_type": "choice", "_value": [1, 2, 3]}},
    "tuner": {"name": "GridSearch"},
    "trainingService": {"platform": "local"},
}


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Workshop:
    """A folder with an experiment file, and a home so that nothing of NNI's leaks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (folder / TRIAL.name).write_text(TRIAL.read_text())
        places = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, places))
        self.env = {**os.environ, "HOME": str(self.home), "PYTHONPATH": path}
        # NNI keeps its list of algorithms in the virtual environment; give it one of ours.
        self.env["NNI_CONFIG_DIR"] = str(self.home / "config")

    def write(self, **changes: object) -> Path:
        data = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        file = self.folder / "experiment.yml"
        file.write_text(yaml.safe_dump(data))
        return file

    def start(self, *args: str, **options: bool) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "nni_gconv", *args],
            env=self.env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *args: str, timeout: float = 240) -> Finished:
        return self.finish(self.start(*args), timeout)

    def finish(self, process: subprocess.Popen, timeout: float = 240) -> Finished:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
            raise AssertionError(f"did not end in {timeout} s:\n{out}\n{err}") from None
        return Finished(process.returncode, out, err)

    def nnictl(self, *args: str) -> str:
        """Run the real nnictl; its manager stays on this machine and waits for the tuner.

        Its trials find the same python.
        """
        launch = self.folder / "launch"
        write_launch_files(launch)
        more = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), self.env["PATH"]]),
            "NODE_OPTIONS": " ".join(f"--require {launch / n}" for n in ("bind.js", "patience.js")),
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(NNICTL), *args],
            env={**self.env, **more}, cwd=self.folder, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def experiments(self) -> list[Path]:
        kept = self.home / "nni-experiments"
        return sorted(path.parent for path in kept.glob("*/db") if not path.parent.is_symlink())

    def wait_for(self, pattern: str, timeout: float = 180) -> Path:
        """Wait until a trial has written a file."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = list((self.home / "nni-experiments").glob(pattern))
            if found:
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"no {pattern} in {timeout} s")


def marked() -> list[psutil.Process]:
    """Return all processes that belong to an experiment we started and are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if EXPERIMENT_MARK in process.environ() and process.status() != "zombie":
                found.append(process)
        except (psutil.Error, OSError):
            pass
    return found


@pytest.fixture
def cold_workshop(tmp_path: Path) -> Workshop:
    """A workshop whose processes are started as a user's are."""
    return Workshop(tmp_path)


@pytest.fixture
def workshop(cold_workshop: Workshop, warm) -> Workshop:
    """A workshop whose commands, dispatchers and trials are forked; signals to groups miss them."""
    cold_workshop.env = warm(cold_workshop.env, TRIAL.name)
    return cold_workshop


@pytest.fixture
def forked_probes(monkeypatch, warm):
    """Let what looks at tuners be forked."""
    for name, value in warm(dict(os.environ)).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def still_running():
    """A function that lists what is left of one experiment."""
    return lambda folder: [
        process for process in marked() if process.environ().get(EXPERIMENT_MARK) == folder.name
    ]
