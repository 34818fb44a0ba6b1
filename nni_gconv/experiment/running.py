"""An experiment whose manager runs, and how all of it is ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.experiment.manager import ManagerClient, ManagerError
from nni_gconv.experiment.preflight import ExperimentPlan
from nni_gconv.remote.links import MachineLinks

if TYPE_CHECKING:
    import psutil

__all__ = ["RunningExperiment"]

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
        """Find the processes of this experiment by the mark in their environment.

        By their parents they could not be found: those of a manager that was killed, and those of
        a shell that NNI killed, belong to init.
        """
        import psutil

        from nni_gconv.compat import EXPERIMENT_MARK

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(EXPERIMENT_MARK) == self.id:
                    found.append(process)
        return found


def _end_all(processes: list[psutil.Process]) -> None:
    """End processes with SIGTERM, and after three seconds with SIGKILL."""
    import psutil

    own = os.getpid()
    processes = [process for process in processes if process.pid != own]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=3)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=3)
