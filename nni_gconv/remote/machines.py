"""The machines of an experiment file, as NNI reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Machine:
    """One entry of ``machineList``.

    Attributes
    ----------
    host : str
        Name or address.
    port : int
        Of its SSH server.
    user : str
        Who logs in.
    key_file : Path or None
        Private key; None where a password is given.
    passphrase, password : str or None
        As they stand in the file.
    python_path : str or None
        Folder with the ``python`` to use there.
    place : tuple
        Where it stands in the file: ``("trainingService", "machineList", 0)``.
    """

    host: str
    port: int
    user: str
    key_file: Path | None = None
    passphrase: str | None = None
    password: str | None = None
    python_path: str | None = None
    place: tuple[str | int, ...] = ()

    @property
    def label(self) -> str:
        """``user@host``, with the port where it is not 22."""
        port = f":{self.port}" if self.port != 22 else ""
        return f"{self.user}@{self.host}{port}"

    @property
    def place_text(self) -> str:
        """Where it stands in the file, ``trainingService.machineList[0]``."""
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.place)
        return text.removeprefix(".")

    @property
    def ssh_command(self) -> str:
        """The command line that logs in by hand."""
        words = ["ssh"]
        if self.key_file is not None:
            words += ["-i", str(self.key_file)]
        if self.port != 22:
            words += ["-p", str(self.port)]
        return " ".join([*words, f"{self.user}@{self.host}"])


def machines_of(service: Any) -> list[Machine]:
    """Return the machines of a training service, or of a list of them.

    Parameters
    ----------
    service : object, mapping or list
        NNI's configuration object, or the same as the manager's database has it.

    Returns
    -------
    list of Machine
        Empty for services that need no SSH.

    Examples
    --------
    >>> entry = {"host": "10.0.0.2", "port": 22, "user": "me", "sshKeyFile": "/home/me/.ssh/key"}
    >>> [one.label for one in machines_of({"platform": "remote", "machineList": [entry]})]
    ['me@10.0.0.2']
    """
    if isinstance(service, list):
        found = []
        for index, one in enumerate(service):
            found += _machines(one, ("trainingService", index))
        return found
    return _machines(service, ("trainingService",))


def _machines(service: Any, place: tuple[str | int, ...]) -> list[Machine]:
    entries = _get(service, "machine_list", "machineList") or []
    return [
        Machine(
            host=str(_get(entry, "host", "host")),
            port=int(_get(entry, "port", "port") or 22),
            user=str(_get(entry, "user", "user")),
            key_file=_path(_get(entry, "ssh_key_file", "sshKeyFile")),
            passphrase=_get(entry, "ssh_passphrase", "sshPassphrase"),
            password=_get(entry, "password", "password"),
            python_path=_get(entry, "python_path", "pythonPath"),
            place=(*place, "machineList", index),
        )
        for index, entry in enumerate(entries)
    ]


def _get(entry: Any, attribute: str, key: str) -> Any:
    return entry.get(key) if isinstance(entry, Mapping) else getattr(entry, attribute, None)


def _path(value: Any) -> Path | None:
    return None if value is None else Path(str(value)).expanduser()
