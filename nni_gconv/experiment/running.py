"""An experiment whose manager runs, and how all of it is ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.experiment.checks import ExperimentPlan
from nni_gconv.experiment.manager import ManagerClient, ManagerError
from nni_gconv.remote import MachineLinks

if TYPE_CHECKING:
    import psutil

_STOP_SECONDS = 60.0


@dataclass
class RunningExperiment:
    """An experiment whose manager runs.

    Attributes
    ----------
    id : str
        NNI's id.
    plan : ExperimentPlan
        What it was started from.
    process : subprocess.Popen
        The manager.
    client : ManagerClient
        Its REST interface.
    links : MachineLinks
        Its machines elsewhere; none for a local experiment.
    """

    id: str
    plan: ExperimentPlan
    process: subprocess.Popen[bytes]
    client: ManagerClient
    links: MachineLinks = field(default_factory=lambda: MachineLinks([]))

    @property
    def folder(self) -> Path:
        """Folder of this experiment."""
        return self.plan.folder / self.id

    @property
    def log_folder(self) -> Path:
        """Folder of the manager's and the tuner's logs."""
        return self.folder / "log"

    @property
    def log_start(self) -> int:
        """Where in ``dispatcher.log`` this start begins."""
        return self.plan.resumes.log_start if self.plan.resumes else 0

    @property
    def ended_before(self) -> frozenset[str]:
        """Ids of the trials that had ended before this start."""
        return self.plan.resumes.ended if self.plan.resumes else frozenset()

    def stop(self) -> None:
        """Stop trials, tuner and manager, and whatever of them will not go.

        Safe to call at any time and more than once; a second Ctrl-C does not wait any longer.
        """
        try:
            if self.process.poll() is None:
                with contextlib.suppress(ManagerError):
                    self.client.stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_STOP_SECONDS)
        finally:
            _end_all(self._survivors())
            self.links.sweep(self.id)
            self.links.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)

    def _survivors(self) -> list[psutil.Process]:
        return processes_of(self.folder)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Find whatever runs of an experiment: trials, tuner, and a manager that we started.

    They are found by their environment, not by their parents: those of a manager that was killed,
    and those of a shell that NNI killed, belong to init.

    Parameters
    ----------
    folder : Path
        The experiment's folder, named after its id.

    Returns
    -------
    list of psutil.Process
    """
    import psutil

    from nni_gconv.compat import EXPERIMENT_MARK

    name, log = folder.name, os.path.realpath(folder / "log")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            there = process.environ()
            # Ours carry the mark; of those that nnictl started, trials have NNI's id and the
            # tuner has the folder of its log.
            if (
                name in (there.get(EXPERIMENT_MARK), there.get("NNI_EXP_ID"))
                or os.path.realpath(there.get("NNI_LOG_DIRECTORY", "/")) == log
            ):
                found.append(process)
    return found


def end_processes(folder: Path) -> int:
    """End whatever runs of an experiment, and return how many processes there were."""
    found = processes_of(folder)
    _end_all(found)
    return len(found)


def _end_all(processes: list[psutil.Process]) -> None:
    """End processes with SIGTERM, and after three seconds with SIGKILL."""
    import psutil

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    processes = [process for process in processes if process.pid not in own]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=3)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=3)
