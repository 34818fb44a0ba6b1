"""All machines of an experiment, watched together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from nni_gconv.remote.machines import Machine
from nni_gconv.remote.ssh import RemoteError
from nni_gconv.remote.tunnel import ReverseTunnel

_SWEEP = """
import os, sys, psutil
found = []
for process in psutil.process_iter():
    try:
        environment, words = process.environ(), process.cmdline()
    except (psutil.Error, OSError):
        continue
    keeper = any(sys.argv[1] in word and "trial_keeper" in word for word in words)
    if process.pid != os.getpid() and (environment.get("NNI_EXP_ID") == sys.argv[1] or keeper):
        found.append(process)
for process in found:
    try:
        process.terminate()
    except psutil.Error:
        pass
for process in psutil.wait_procs(found, timeout=3)[1]:
    try:
        process.kill()
    except psutil.Error:
        pass
"""


class MachineLinks:
    """A watched login to each machine, and the tunnels through them.

    Parameters
    ----------
    machines : sequence of Machine
        Of one experiment.

    Examples
    --------
    >>> with MachineLinks([]) as links:
    ...     links.forward(8080)
    ...     links.lost()
    []
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = tuple(machines)
        self._tunnels = [ReverseTunnel(machine) for machine in machines]
        self._told: set[str] = set()

    def __enter__(self) -> MachineLinks:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Log in to all machines at once.

        Raises
        ------
        RemoteError
            Of the first machine that cannot be used; no login is left open.
        """
        if not self._tunnels:
            return
        with ThreadPoolExecutor(len(self._tunnels)) as pool:
            results = [pool.submit(tunnel.open) for tunnel in self._tunnels]
        for machine, result in zip(self.machines, results, strict=True):
            error = result.exception()
            if error is not None:
                self.close()
                if isinstance(error, RemoteError):
                    error.machine = machine
                raise error

    def forward(self, port: int) -> None:
        """Open the tunnels from each machine's loopback to the manager here.

        Parameters
        ----------
        port : int
            The manager's, who listens already; the same at both ends.

        Raises
        ------
        RemoteError
            A machine does not allow it.
        """
        for tunnel in self._tunnels:
            tunnel.forward(port)

    def close(self) -> None:
        """End all logins and tunnels; safe to call again."""
        for tunnel in self._tunnels:
            tunnel.close()

    def sweep(self, experiment_id: str) -> None:
        """End what is left of an experiment on its machines.

        NNI's trial keeper ends without its trials when the manager is killed, and a trial's shell
        ends without what it started.
        """
        for tunnel in self._tunnels:
            with contextlib.suppress(RemoteError):
                tunnel.python(_SWEEP, experiment_id)

    def lost(self) -> list[tuple[Machine, float]]:
        """Return the machines that do not answer, each with the time since when."""
        return [
            (tunnel.machine, since)
            for tunnel in self._tunnels
            if (since := tunnel.lost_since) is not None
        ]

    @property
    def all_lost_for(self) -> float:
        """Seconds for which no machine at all has answered; 0 while one does."""
        lost = self.lost()
        if not lost or len(lost) < len(self._tunnels):
            return 0.0
        return time.time() - max(since for _, since in lost)

    def news(self) -> list[str]:
        """Return a line for each machine that was lost or came back since the last call."""
        lost = {machine.label: since for machine, since in self.lost()}
        lines = [
            f"lost {label}: no answer since {time.strftime('%H:%M:%S', time.localtime(since))}"
            for label, since in lost.items()
            if label not in self._told
        ]
        lines += [f"{label} answers again" for label in sorted(self._told - set(lost))]
        self._told = set(lost)
        return lines

    def lost_host(self, host: str) -> str | None:
        """Return the label of a lost machine by its host name, None if it answers."""
        return next((machine.label for machine, _ in self.lost() if machine.host == host), None)
