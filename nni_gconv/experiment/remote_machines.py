"""The way to an experiment's machines elsewhere, and for the manager the way there."""

from __future__ import annotations

from pathlib import Path

from nni_gconv.compat import WAYS
from nni_gconv.experiment.checks import ExperimentPlan
from nni_gconv.files import write_json
from nni_gconv.remote import (
    Machine,
    MachineLinks,
    RemoteError,
    known_host_keys,
    line_of,
    way_to,
)


def open_links(plan: ExperimentPlan, private: Path) -> MachineLinks:
    """Log in to the machines of an experiment, and leave the way there for the manager.

    Parameters
    ----------
    plan : ExperimentPlan
        A checked experiment.
    private : Path
        Folder of its launch files.

    Returns
    -------
    MachineLinks
        Open; empty where there are no machines elsewhere.

    Raises
    ------
    RemoteError
        A machine cannot be used: file, line and reason.
    """
    links = MachineLinks(plan.machines)
    try:
        links.open()
    except RemoteError as error:
        machine = error.machine
        raise RemoteError(f"{_where(plan.file, machine, error.key)}: {error}") from None
    if plan.machines:
        ways = {
            f"{one.host}:{one.port}": {
                "keys": known_host_keys(one),
                "command": way_to(one).command,
                "host": way_to(one).host,
            }
            for one in plan.machines
        }
        write_json(private / WAYS, ways)
    return links


def _where(file: Path, machine: Machine | None, key: str = "") -> str:
    """Write the place of a machine's key in an experiment file, ``experiment.yml:12``."""
    if machine is None:
        return str(file)
    line = line_of(file, (*machine.place, key) if key else machine.place)
    return f"{file}:{line}" if line else str(file)
