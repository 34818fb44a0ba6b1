"""Showing on standard error what an experiment does."""

from __future__ import annotations

import contextlib
import getpass
import socket
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nni_gconv.experiment.manager import TrialState, trials_in_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from nni_gconv.experiment.running import RunningExperiment
    from nni_gconv.experiment.watch import Outcome
    from nni_gconv.remote import FetchReport, MachineLinks

#: Parameters that are written out on a line of a trial.
_SHOWN = 6
#: Running trials whose epochs are shown.
_SHOWN_RUNNING = 4
#: Seconds of silence after which a line says how far it is, where no terminal shows a bar.
_APART = 60.0


class ExperimentView:
    """A progress bar on a terminal, one line per ended trial elsewhere.

    Parameters
    ----------
    console : rich.console.Console
        Where to write; a console of standard error keeps standard output for results.

    Examples
    --------
    >>> view = ExperimentView.on_stderr()
    >>> silent = ExperimentView.silent()
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._total: int | None = None
        self._varied: set[str] | None = None
        self._minimize, self._concurrency = False, 1
        self._spoken = time.monotonic()
        self._told: set[str] = set()
        self._links: MachineLinks | None = None

    @classmethod
    def on_stderr(cls) -> ExperimentView:
        """Return a view that writes to standard error."""
        from rich.console import Console

        return cls(Console(stderr=True, highlight=False))

    @classmethod
    def silent(cls) -> ExperimentView:
        """Return a view that writes nothing."""
        from rich.console import Console

        return cls(Console(quiet=True))

    @contextlib.contextmanager
    def showing(self, experiment: RunningExperiment) -> Iterator[None]:
        """Announce an experiment and show its progress for the time of a ``with`` block."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        plan = experiment.plan
        self._links = experiment.links
        self._total, self._varied = plan.max_trials, plan.varied
        self._print(f"experiment {experiment.id} ({plan.name})")
        self._print(f"web UI     {experiment.client.url}")
        if plan.loopback:
            self._print(f"from afar  {tunnel_line(plan.port)}")
        self._concurrency = plan.config.trial_concurrency or 1
        many = "trials until it is stopped" if self._total is None else trials_in_words(self._total)
        self._print(f"{'trials':<11}{many}, {self._concurrency} at a time")
        for note in plan.notes:
            self._print(f"note       {note}")
        self._minimize = plan.minimize
        if not self.console.is_terminal:
            yield
            return
        bar = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        with bar:
            bar.add_task("starting", total=self._total)
            self._progress = bar
            try:
                yield
            finally:
                self._progress = None

    def update(self, status: str, trials: Sequence[TrialState]) -> None:
        """Show the state of the trials; a listener of :func:`nni_gconv.experiment.watch.watch`."""
        for line in self._links.news() if self._links is not None else ():
            self._print(f"machine    {line}")
        ended = [trial for trial in trials if trial.ended]
        for trial in ended:
            if trial.id not in self._told:
                self._told.add(trial.id)
                self._print(self._trial_line(trial, len(self._told)))
        text = summary(status, trials, self._total, minimize=self._minimize)
        left = time_left(trials, self._total, self._concurrency)
        far = running_lines(trials)
        if self._progress is None and time.monotonic() - self._spoken >= _APART:
            self._print("; ".join([f"{text}, {left}" if left else text, *far]))
        if self._progress is not None:
            # Each on a line of its own: 80 columns have to do.
            task = self._progress.task_ids[0]
            shown = "\n".join([text, *filter(None, [left]), *far])
            self._progress.update(task, description=shown, completed=len(ended))

    def fetched(self, report: FetchReport | None) -> None:
        """Say what came home from machines elsewhere, and what did not."""
        if report is None:
            return
        self._print(
            f"fetched    the files of {trials_in_words(len(report.trials))} from the machines"
        )
        for problem in report.problems:
            self._print(f"not here   {problem}")

    def ended(self, outcome: Outcome, kept: RunningExperiment | None) -> None:
        """Say how it ended, why trials failed, and where the web UI is if it was kept."""
        for trial in outcome.trials:
            words = outcome.failures.get(trial.id)
            if trial.failed:
                self._print(f"trial {trial.number} ({trial.id}) failed; the last it wrote:")
                self._print("\n".join(f"  | {line}" for line in (words or "nothing").splitlines()))
        self._print(f"{'done' if outcome.ok else 'ended'}: {outcome.message}")
        self._print(f"kept in {outcome.folder}")
        if kept is not None:
            self._print(f"web UI stays at {kept.client.url}; stop it with: nnictl stop {kept.id}")

    def _trial_line(self, trial: TrialState, count: int) -> str:
        total = f"/{self._total}" if self._total else ""
        # What is the same in all trials, or goes with a choice, tells nothing.
        given = [
            f"{key}={value}"
            for key, value in trial.parameters.items()
            if self._varied is None or key in self._varied
        ]
        chosen = ", ".join(given) if len(given) <= _SHOWN else f"{len(given)} parameters"
        score = f" {trial.score:.4f}" if trial.score is not None else ""
        seconds = f" in {trial.seconds:.0f} s" if trial.seconds is not None else ""
        return f"[{count}{total}] {trial.id} {trial.status.lower()}{score}{seconds}  {chosen}"

    def _print(self, text: str) -> None:
        self._spoken = time.monotonic()
        self.console.print(text, markup=False, soft_wrap=True)


def tunnel_line(port: int) -> str:
    """Write the command that shows a web UI of this machine's loopback on another machine.

    Examples
    --------
    >>> tunnel_line(8080).startswith("ssh -N -L 8080:127.0.0.1:8080 ")
    True
    """
    try:
        user = f"{getpass.getuser()}@"
    except (OSError, KeyError):  # a user id without a name, as containers have
        user = ""
    return f"ssh -N -L {port}:127.0.0.1:{port} {user}{socket.gethostname()}"


def time_left(trials: Sequence[TrialState], total: int | None, concurrency: int) -> str:
    """Guess how long the rest takes, by the trials that succeeded; "" where nothing tells.

    Examples
    --------
    >>> done = TrialState("a", 0, "SUCCEEDED", seconds=90.0)
    >>> time_left([done], 5, 2)
    'about 3 minutes left'

    What a trial trained for all counts once.

    >>> time_left([TrialState("a", 0, "SUCCEEDED", seconds=90.0, shared_seconds=60.0)], 5, 2)
    'about 1 minute left'
    """
    took = [
        max(trial.seconds - trial.shared_seconds, 0.0)
        for trial in trials
        if trial.status == "SUCCEEDED" and trial.seconds is not None
    ]
    left = 0 if total is None else total - sum(trial.ended for trial in trials)
    if not took or left <= 0:
        return ""
    minutes = sum(took) / len(took) * left / concurrency / 60
    if minutes < 1:
        return "less than a minute left"
    return f"about {minutes:.0f} minute{'s' if round(minutes) != 1 else ''} left"


def running_lines(trials: Sequence[TrialState]) -> list[str]:
    """Write how far the running trials are; empty where nothing is known of any.

    Examples
    --------
    >>> running_lines([TrialState("aB3de", 0, "RUNNING", progress="train, epoch 2 of 8")])
    ['aB3de train, epoch 2 of 8']
    """
    known = [trial for trial in trials if trial.progress and not trial.ended]
    texts = [f"{trial.id} {trial.progress}" for trial in known[:_SHOWN_RUNNING]]
    more = len(known) - len(texts)
    return [*texts, *([f"and {more} more"] if more else [])]


def summary(
    status: str, trials: Sequence[TrialState], total: int | None, *, minimize: bool = False
) -> str:
    """Write the state of an experiment on one line.

    Examples
    --------
    >>> summary("RUNNING", [TrialState("a", 0, "RUNNING")], 6)
    'running: 0/6 done, 1 running, 0 failed'

    What NNI calls an experiment whose last trials run, or wait for the tuner, is running, too.

    >>> summary("NO_MORE_TRIAL", [TrialState("a", 0, "RUNNING")], 1)
    'running: 0/1 done, 1 running, 0 failed'
    """
    state = "running" if status.endswith("NO_MORE_TRIAL") else status.lower()
    ended = sum(trial.ended for trial in trials)
    failed = sum(trial.failed for trial in trials)
    running = sum(trial.status == "RUNNING" for trial in trials)
    of = f"/{total}" if total else ""
    text = f"{state}: {ended}{of} done, {running} running, {failed} failed"
    scored = [trial for trial in trials if trial.score is not None]
    if scored:
        sign = -1.0 if minimize else 1.0
        best = max(scored, key=lambda trial: sign * (trial.score or 0.0))
        text += f", best {best.score:.4f} ({best.id})"
    return text
