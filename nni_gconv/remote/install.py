"""Installing on a machine what is missing there, from a file that is brought along."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.remote.check import PACKAGES
from nni_gconv.remote.probe import probe
from nni_gconv.remote.ssh import Connection, RemoteError

if TYPE_CHECKING:
    import paramiko

_MINUTES = 30
#: Below the home there.
_PLACE = ".cache/nni-gconv"


def bring(connection: Connection, wheel: Path, versions: Mapping[str, str]) -> list[str]:
    """Install on a machine what it lacks of the packages here; nothing where it lacks none.

    Parameters
    ----------
    connection : Connection
        A login there.
    wheel : Path
        Of this package.
    versions : mapping
        Of the packages here; what is there already in another version is left alone, but for this
        package itself.

    Returns
    -------
    list of str
        What pip was given.

    Raises
    ------
    RemoteError
        As of :func:`install`, or there is no Python to install it for.
    """
    there = {name: _plain(v) for name, v in probe(connection, PACKAGES).versions.items()}
    others = [
        f"{name}=={_plain(versions[name])}"
        for name in PACKAGES
        if name in versions and name not in there and name != "nni-gconv"
    ]
    if not others and there.get("nni-gconv") == _plain(versions["nni-gconv"]):
        return []
    install(connection, wheel, others)
    return [wheel.name, *others]


def _plain(version: str) -> str:
    return version.partition("+")[0]


def install(connection: Connection, wheel: Path, others: Sequence[str] = ()) -> None:
    """Copy a wheel to a machine and install it, with what it requires.

    Parameters
    ----------
    connection : Connection
        A login there.
    wheel : Path
        A file here.
    others : sequence of str
        Requirements that are installed beside it: ``torch==2.4.0``.

    Raises
    ------
    RemoteError
        The file cannot be copied, or pip fails; what it said last is in the message.
    """
    label = connection.machine.label
    try:
        sftp: paramiko.SFTPClient = connection.client.open_sftp()
        try:
            connection.run(f"mkdir -p {_PLACE}")
            there = f"{sftp.normalize(_PLACE)}/{wheel.name}"
            sftp.put(str(wheel), there)
        finally:
            sftp.close()
    except (OSError, EOFError) as error:
        raise RemoteError(f"{label}: {wheel.name} could not be copied: {error}") from None
    words = " ".join(shlex.quote(word) for word in (there, *others))
    command = f"{connection.python_command} -m pip install {words}"
    ended = connection.run(command, timeout=60.0 * _MINUTES)
    if ended.code != 0:
        last = (ended.err or ended.out).strip().splitlines()[-1:] or ["it said nothing"]
        raise RemoteError(f"{label}: pip install failed: {last[0]}", "pythonPath")
