"""Waiting for an experiment, and telling the ways apart in which it can end.

NNI says DONE when it has made ``maxTrialNumber`` trials, TUNER_NO_MORE_TRIAL for ever when the
tuner ran out before, and nothing at all when the tuner or the manager has died.
"""

from __future__ import annotations

import contextlib
import enum
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.compat import read_database
from nni_gconv.errors import ConfigError
from nni_gconv.experiment.epochs import progress_of, shared_seconds
from nni_gconv.experiment.manager import ManagerError, TrialState, trials_in_words

if TYPE_CHECKING:
    from nni_gconv.experiment.running import RunningExperiment

_SILENCE = 60.0  # seconds without an answer of a living manager until it counts as gone
_SETTLE = 2.0  # seconds that TUNER_NO_MORE_TRIAL must hold with every trial ended
_MACHINES_SECONDS = 180.0  # without a single machine elsewhere until the experiment is over
_NOTICE_SECONDS = 60.0  # from a trial's end within which a loss of its machine explains it
_TAIL_LINES = 6


class Ending(enum.Enum):
    """How an experiment ended; the value is the exit code of the command."""

    SUCCESS = 0
    TRIALS_FAILED = 3
    BROKEN = 4
    STOPPED = 5
    INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended, in one sentence and in detail.

    Attributes
    ----------
    ending : Ending
        The kind of end.
    message : str
        One line for the user.
    experiment_id : str
        NNI's id.
    folder : Path
        The experiment's folder, with everything its trials wrote.
    trials : tuple of TrialState
        All trials as last seen.
    failures : dict
        Last lines of the log of each failed trial, by its id.
    """

    ending: Ending
    message: str
    experiment_id: str
    folder: Path
    trials: tuple[TrialState, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything that was to be run has run and succeeded."""
        return self.ending is Ending.SUCCESS

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 on success only."""
        return self.ending.value


Listener = Callable[[str, Sequence[TrialState]], None]


class _Watcher:
    """The state of one wait; each method looks at one way to end."""

    def __init__(
        self, experiment: RunningExperiment, listener: Listener | None, max_failed: int
    ) -> None:
        self.experiment = experiment
        self.listener = listener
        self.max_failed = max_failed
        self.status = "INITIALIZED"
        self.errors: list[str] = []
        self.trials: list[TrialState] = []
        self.failures: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self.killed_since: dict[str, float] = {}
        self.last_answer = time.monotonic()
        self.all_ended_since: float | None = None

    def step(self) -> Outcome | None:
        """Look once; return the outcome when there is one."""
        # The order matters: a manager that has gone explains silence, and a dead tuner silence
        # of the manager about itself.
        gone = self.process_gone()
        if gone is not None:
            return gone
        try:
            self.status, self.errors = self.experiment.client.status()
            self.trials = self.tell_killed(self.experiment.client.trials())
            self.last_answer = time.monotonic()
        except ManagerError as error:
            if time.monotonic() - self.last_answer > _SILENCE:
                return self.end(Ending.BROKEN, f"{error} (for {_SILENCE:.0f} s)")
            return None
        for trial in self.trials:
            if trial.failed and trial.id not in self.failures:
                self.failures[trial.id] = failure_words(self.experiment, trial)
        self.note_lost()
        if self.listener is not None:
            self.trials = with_progress(self.experiment, self.trials)
            self.listener(self.status, self.trials)
        return self.tuner_dead() or self.machines_gone() or self.hopeless() or self.by_status()

    def tell_killed(self, trials: list[TrialState]) -> list[TrialState]:
        """Tell trials that a signal ended from those that somebody cancelled; NNI does not."""
        if not any(trial.status == "USER_CANCELED" for trial in trials):
            return trials
        try:
            known = read_database(self.experiment.folder).trials
        except ConfigError:
            return trials  # it is being written; the next look tells
        return [
            replace(trial, status="KILLED")
            if trial.status == "USER_CANCELED"
            and trial.id in known
            and known[trial.id].status == "KILLED"
            else trial
            for trial in trials
        ]

    def process_gone(self) -> Outcome | None:
        code = self.experiment.process.poll()
        if code is None:
            return None
        if code == 0:
            return self.end(Ending.STOPPED, "the experiment was stopped from outside")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        words = last_lines(self.experiment.log_folder / "nnictl_stderr.log", 1)
        detail = f": {words}" if words and not words.startswith("---") else ""
        return self.end(
            Ending.BROKEN,
            f"NNI's manager ended {how}{detail} (log: {self.experiment.log_folder})",
        )

    def tuner_dead(self) -> Outcome | None:
        from nni_gconv.compat import dispatcher_exception

        log = self.experiment.log_folder / "dispatcher.log"
        try:
            written = log.read_bytes()[self.experiment.log_start :]
            words = dispatcher_exception(written.decode("utf-8", "replace"))
        except FileNotFoundError:
            return None
        if words is None:
            return None
        return self.end(Ending.BROKEN, f"the tuner or assessor raised {words} (log: {log})")

    def machines_gone(self) -> Outcome | None:
        # NNI would look for a machine for ever; one that is back within that time is found again.
        links = self.experiment.links
        if not links.machines:
            return None
        here = any(one.platform == "local" for one in self.experiment.plan.services)
        if here or self.status == "DONE" or links.all_lost_for < _MACHINES_SECONDS:
            return None
        labels = ", ".join(machine.label for machine, _ in links.lost())
        return self.end(
            Ending.BROKEN, f"no machine is left: {labels} lost for {_MACHINES_SECONDS:.0f} s"
        )

    def hopeless(self) -> Outcome | None:
        before = self.experiment.ended_before
        ended = [trial for trial in self.trials if trial.ended and trial.id not in before]
        failed = [trial for trial in ended if trial.failed]
        if self.status == "DONE" or len(failed) < self.max_failed or len(failed) < len(ended):
            return None
        return self.end(
            Ending.TRIALS_FAILED, f"stopped: the first {len(failed)} trials have all failed"
        )

    def by_status(self) -> Outcome | None:
        if self.status == "ERROR":
            reason = "; ".join(self.errors) or "no reason given"
            log = self.experiment.log_folder / "nnimanager.log"
            return self.end(Ending.BROKEN, f"NNI reports an error: {reason} (log: {log})")
        if self.status in ("STOPPING", "STOPPED"):
            return self.end(Ending.STOPPED, "the experiment was stopped from outside")
        if self.status == "DONE":
            return self.finished()
        if self.status != "TUNER_NO_MORE_TRIAL" or not self.nothing_left():
            self.all_ended_since = None
            return None
        if self.all_ended_since is None:
            self.all_ended_since = time.monotonic()
        # A tuner may think again when the last result reaches it, so the state must hold.
        if time.monotonic() - self.all_ended_since < _SETTLE:
            return None
        return self.finished()

    def nothing_left(self) -> bool:
        try:
            generated = self.experiment.client.generated()
        except ManagerError:
            return False
        return generated <= len(self.trials) and all(trial.ended for trial in self.trials)

    def finished(self) -> Outcome:
        failed = [trial for trial in self.trials if trial.failed]
        if not self.trials:
            return self.end(Ending.BROKEN, "the tuner ended without a single trial")
        if failed:
            return self.end(
                Ending.TRIALS_FAILED, f"{len(failed)} of {len(self.trials)} trials failed"
            )
        good = [trial for trial in self.trials if trial.status == "SUCCEEDED"]
        silent = [trial for trial in good if not trial.metrics]
        if silent:
            return self.end(
                Ending.TRIALS_FAILED,
                f"{len(silent)} of {len(self.trials)} trials ended without a final result: "
                f"{', '.join(trial.id for trial in silent[:5])} (a trial calls "
                "nni.report_final_result; nni-gconv run does)",
            )
        early = sum(trial.status == "EARLY_STOPPED" for trial in self.trials)
        rest = len(self.trials) - len(good) - early
        words = [f"{trials_in_words(len(good))} succeeded"]
        words += [f"{early} stopped early"] if early else []
        words += [f"{rest} cancelled"] if rest else []
        return self.end(Ending.SUCCESS, ", ".join(words))

    def end(self, ending: Ending, message: str) -> Outcome:
        self.note_lost()
        return Outcome(
            ending,
            message,
            self.experiment.id,
            self.experiment.folder,
            tuple(self.trials),
            self.failures | self.lost,
        )

    def note_lost(self) -> None:
        """Note the trials that went with their machine, and by what to run them again.

        The machine may answer again later; and NNI may notice before our own watch on it does.
        """
        for trial in self.trials:
            if trial.status != "KILLED" or not trial.host or trial.id in self.lost:
                continue
            since = self.killed_since.setdefault(trial.id, time.monotonic())
            label = self.experiment.links.lost_host(trial.host)
            if label is not None and time.monotonic() - since < _NOTICE_SECONDS:
                self.lost[trial.id] = (
                    f"{label} was lost while it ran there; its parameters were "
                    f"{json.dumps(trial.parameters)}"
                )


def watch(
    experiment: RunningExperiment,
    *,
    listener: Listener | None = None,
    poll_seconds: float = 1.0,
    max_failed: int = 5,
) -> Outcome:
    """Wait until an experiment has ended, however it ends.

    Parameters
    ----------
    experiment : RunningExperiment
        What :func:`nni_gconv.experiment.launch.start` returned.
    listener : callable, optional
        Called after every look with NNI's status and the list of trials.
    poll_seconds : float, default 1.0
        Time between two looks.
    max_failed : int, default 5
        Give up when this many trials have ended and every one of them failed.

    Returns
    -------
    Outcome
        Ctrl-C is an outcome too (:attr:`Ending.INTERRUPTED`). The experiment is left as it is:
        stopping it is the caller's.

    Examples
    --------
    >>> from nni_gconv.experiment import experiment_file, preflight, start
    >>> experiment = start(preflight(experiment_file("quickstart")))  # doctest: +SKIP
    >>> watch(experiment).ok  # doctest: +SKIP
    True
    """
    watcher = _Watcher(experiment, listener, max_failed)
    try:
        while True:
            outcome = watcher.step()
            if outcome is not None:
                return outcome
            time.sleep(poll_seconds)
    except KeyboardInterrupt:
        again = f"interrupted; go on with: nni-gconv resume {experiment.id}"
        return watcher.end(Ending.INTERRUPTED, again)


def with_progress(experiment: RunningExperiment, trials: list[TrialState]) -> list[TrialState]:
    """Say how far running trials are: by their own files, else by what they have told NNI."""
    reported: dict[str, tuple[int, float | None]] | None = None
    found = []
    for trial in trials:
        if trial.status == "SUCCEEDED":
            shared = _shared_seconds(experiment.folder, trial.id)
            found.append(replace(trial, shared_seconds=shared))
            continue
        if trial.status != "RUNNING":
            found.append(trial)
            continue
        folders = _folders(experiment.folder, trial.id)
        words = next(filter(None, map(progress_of, folders)), "")
        if not words:
            if reported is None:
                reported = {}
                with contextlib.suppress(ManagerError):
                    reported = experiment.client.reported()
            count, last = reported.get(trial.id, (0, None))
            number = f", the last {last:.4g}" if last is not None else ""
            words = f"{count} results{number}" if count else ""
        found.append(replace(trial, progress=words))
    return found


def _folders(experiment: Path, trial: str) -> Iterator[Path]:
    """Find a trial's folder; one for each place where it has run."""
    return experiment.glob(f"environments/*/trials/{trial}")


@lru_cache(maxsize=4096)
def _shared_seconds(experiment: Path, trial: str) -> float:
    """Look up what has ended once, and not at every look."""
    return max(map(shared_seconds, _folders(experiment, trial)), default=0.0)


def failure_words(experiment: RunningExperiment, trial: TrialState) -> str:
    """Return the last lines a failed trial wrote, "" where nothing of it is left."""
    for name in ("trial.stderr", "trial.log", "trial.stdout"):
        for folder in _folders(experiment.folder, trial.id):
            words = last_lines(folder / name, _TAIL_LINES)
            if words:
                return words
    # Trials elsewhere: the manager fetches their files.
    text = experiment.client.trial_file(trial.id, "trial.stderr")
    if text.startswith("NNI internal error."):
        return ""
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def last_lines(file: Path, count: int) -> str:
    """Return the last `count` lines of a text file that are not empty, "" if there is no file."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 65536))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
