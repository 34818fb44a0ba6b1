"""Bringing home what trials elsewhere wrote: while the experiment runs, and at its end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nni_gconv.experiment.manager import TrialState
from nni_gconv.remote import FetchReport, RemoteError, connect, fetch_machine

if TYPE_CHECKING:
    from nni_gconv.experiment.running import RunningExperiment
    from nni_gconv.remote import Machine

_PAUSE_SECONDS = 5.0


class Courier:
    """Fetches the files of an experiment's machines in the background.

    Parameters
    ----------
    experiment : RunningExperiment
        Its machines; with none, every method does nothing.
    """

    def __init__(self, experiment: RunningExperiment) -> None:
        self.experiment = experiment
        self._ended: set[str] = set()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def update(self, trials: Sequence[TrialState]) -> None:
        """Take note of trials that have ended: their files are fetched soon."""
        if not self.experiment.links.machines:
            return
        ended = {trial.id for trial in trials if trial.ended}
        if ended - self._ended:
            self._ended |= ended
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
                self._thread.start()

    def finish(self) -> FetchReport | None:
        """Fetch everything that is left, and say what could not be.

        Returns
        -------
        FetchReport or None
            None for an experiment without machines elsewhere.
        """
        self.close()
        if not self.experiment.links.machines:
            return None
        return self._round()

    def close(self) -> None:
        """End the background work, between two files at the latest after its silence."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            if self._stopping.is_set():
                return
            self._round()  # what fails now is tried again at the next end of a trial
            self._stopping.wait(_PAUSE_SECONDS)

    def _round(self) -> FetchReport:
        report = FetchReport()
        lost = {machine for machine, _ in self.experiment.links.lost()}
        for machine in self.experiment.links.machines:
            if machine in lost:
                report.problems.append(f"{machine.label}: lost; its files stay there")
            else:
                self._fetch(machine, report)
        return report

    def _fetch(self, machine: Machine, report: FetchReport) -> None:
        try:
            with connect(machine) as connection:
                report.add(fetch_machine(connection, self.experiment.id, self.experiment.folder))
        except RemoteError as error:
            report.problems.append(str(error))
        except OSError as error:  # this machine's disk
            report.problems.append(f"{machine.label}: {error}")
