"""Machines by their names in ``~/.ssh/config``: address, port, user, key and the way there.

NNI's manager logs in by what the experiment file says, so the file's own entries are completed
before it reads them; what an entry says itself stays. A machine behind another one, or whose host
key has a name or a file of its own, keeps its name: the way there is looked up by it at each login,
ours and the manager's.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError
from nni_gconv.remote.machines import Machine
from nni_gconv.remote.ssh_include import read_with_includes

if TYPE_CHECKING:
    import paramiko

#: Key of NNI's file -> key of the SSH configuration.
_KEYS = {"port": "port", "user": "user", "sshKeyFile": "identityfile"}
_SECONDS = 20


@dataclass(frozen=True)
class Way:
    """How to reach a machine.

    Attributes
    ----------
    host : str
        Its name or address on the way's last step.
    command : str or None
        Shell command whose input and output are the connection; None: none is needed.
    behind : str
        The machine, or command, that is in between; "" for none.
    alias : str
        What its host key is known by instead of host and port (``HostKeyAlias``); "" for nothing.
    known_hosts : tuple of Path or None
        Your files of host keys (``UserKnownHostsFile``); None: the usual one.
    """

    host: str
    command: str | None = None
    behind: str = ""
    alias: str = ""
    known_hosts: tuple[Path, ...] | None = None

    def known_name(self, port: int) -> str:
        """Write the machine's name in a ``known_hosts`` file."""
        return self.alias or (self.host if port == 22 else f"[{self.host}]:{port}")


def way_to(machine: Machine, file: Path | None = None) -> Way:
    """Look up the way to a machine, and what its host key is to be compared with.

    Parameters
    ----------
    machine : Machine
        Its `host` is what the configuration may know.
    file : Path, optional
        Default: ``~/.ssh/config``.

    Raises
    ------
    ConfigError
        The configuration cannot be read.
    """
    file = _default() if file is None else file
    first = f"Host *\nPort {machine.port}\nUser {machine.user}\n"
    known = _read(file, first)
    if known is None:
        return Way(machine.host)
    found = known.lookup(machine.host)
    behind, alias = _behind(found, machine.host), str(found.get("hostkeyalias", ""))
    host = str(found.get("hostname", machine.host))
    files = _known_hosts(found, host)
    if not behind and not alias and files is None:
        return Way(machine.host)
    if not behind:
        command = None
    elif found.get("proxycommand") == behind:
        # paramiko leaves these two.
        command = behind.replace("%n", machine.host).replace("%%", "%")
    else:
        command = _jump(behind, host, machine.port, file)
    return Way(host, command, behind, alias, files)


def _known_hosts(found: Mapping[str, Any], host: str) -> tuple[Path, ...] | None:
    """Read ``UserKnownHostsFile``: several files, with ``~`` and the marks that ssh knows there."""
    value = found.get("userknownhostsfile")
    if value is None:
        return None
    home = str(Path.home())
    marks = {"%%": "%", "%d": home, "%h": host, "%u": getpass.getuser()}
    files = []
    for word in shlex.split(str(value)):
        if word.lower() != "none":
            named = re.sub("%[%dhu]", lambda mark: marks[mark[0]], os.path.expandvars(word))
            files.append(Path(named).expanduser())
    return tuple(files)


def _jump(jumps: str, host: str, port: int, file: Path) -> str:
    """Write what ssh itself runs for a ``ProxyJump``; it never asks."""
    *before, last = [one.strip() for one in jumps.split(",")]
    words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SECONDS}"]
    if file != _account_default():  # ssh reads the account's, wherever HOME is
        words += ["-F", str(file)]
    if before:
        words += ["-J", ",".join(before)]
    words += ["-W", f"[{host}]:{port}", last if "://" in last else f"ssh://{last}"]
    return shlex.join(words)


def with_ssh_config(data: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Complete the machines of an experiment file from an SSH configuration.

    Parameters
    ----------
    data : mapping
        Content of the file.
    file : Path, optional
        Default: ``~/.ssh/config``; without one nothing changes.

    Raises
    ------
    ConfigError
        The configuration cannot be read.
    """
    known = _read(_default() if file is None else file)
    service = data.get("trainingService")
    if known is None or service is None:
        return dict(data)
    services = service if isinstance(service, list) else [service]
    done = [_service(one, known) for one in services]
    return {**data, "trainingService": done if isinstance(service, list) else done[0]}


def _read(file: Path, first: str = "") -> paramiko.SSHConfig | None:
    """Read a configuration; `first` stands before it, and so wins."""
    import paramiko

    if not file.is_file():
        return None
    try:
        return paramiko.SSHConfig.from_text(first + read_with_includes(file))
    except (paramiko.ConfigParseError, OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


def _default() -> Path:
    return Path.home() / ".ssh" / "config"


def _account_default() -> Path | None:
    try:
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh" / "config"
    except (ImportError, KeyError):
        return None


def _behind(found: Mapping[str, Any], host: str) -> str:
    """Tell what is in between, "" for nothing; ``Host *`` may name the jump for itself, too."""
    for word in ("proxycommand", "proxyjump"):
        value = str(found.get(word) or "none")
        if value.lower() != "none" and not (word == "proxyjump" and value == host):
            return value
    return ""


def _service(service: Any, known: paramiko.SSHConfig) -> Any:
    if not isinstance(service, Mapping) or service.get("platform") != "remote":
        return service
    result = dict(service)
    for key, machines in service.items():
        if str(key).lower().replace("_", "") == "machinelist" and isinstance(machines, list):
            result[key] = [_machine(one, known) for one in machines]
    return result


def _machine(machine: Any, known: paramiko.SSHConfig) -> Any:
    if not isinstance(machine, Mapping) or not isinstance(machine.get("host"), str):
        return machine
    host = machine["host"]
    found = known.lookup(host)
    result = dict(machine)
    own_name = found.get("hostkeyalias") or found.get("userknownhostsfile")
    if not _behind(found, host) and not own_name:
        result["host"] = found.get("hostname", host)
    given = {str(key).lower().replace("_", "") for key in machine}
    for key, word in _KEYS.items():
        value = found.get(word)
        missing = key.lower() not in given and not (key == "sshKeyFile" and "password" in given)
        if value is None or not missing:
            continue
        one = value[0] if isinstance(value, list) else value
        result[key] = int(one) if key == "port" else str(one)
    return result
