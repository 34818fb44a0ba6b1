"""Installing on an experiment's machines what trials need there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nni_gconv.experiment.checks.checkup import versions_here
from nni_gconv.experiment.checks.preflight import preflight
from nni_gconv.installation import write_wheel
from nni_gconv.remote import Machine, RemoteError, bring, connect


def fix_machines(file: str | Path) -> Iterator[str]:
    """Copy this package to the machines of an experiment that lack it, and install it there.

    A package index need not have it: the file that is copied is made of the installation here.

    Parameters
    ----------
    file : str or Path
        An NNI 3.0 experiment YAML.

    Yields
    ------
    str
        A line for each machine: what was installed, or why it was not.

    Raises
    ------
    ConfigError
        The file is wrong, or nothing here says what the package requires.
    """
    machines = preflight(file).machines
    if not machines:
        yield "no machine elsewhere: nothing to install"
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(machines)) as pool:
        wheel = write_wheel(folder)
        yield from pool.map(lambda machine: _fix(machine, wheel), machines)


def _fix(machine: Machine, wheel: Path) -> str:
    try:
        with connect(machine) as connection:
            done = bring(connection, wheel, versions_here())
    except RemoteError as error:
        return str(error)
    return f"{machine.label}: {'installed ' + ', '.join(done) if done else 'lacks nothing'}"
