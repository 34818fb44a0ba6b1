"""Machines by their names in ``~/.ssh/config``: address, port, user and key are filled in.

NNI's manager logs in by what the experiment file says, so the file's own entries are completed
before it reads them; what an entry says itself stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError

#: Key of NNI's file -> key of the SSH configuration.
_KEYS = {"port": "port", "user": "user", "sshKeyFile": "identityfile"}


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
        The configuration cannot be read, or a machine is behind another one (``ProxyJump``,
        ``ProxyCommand``), which NNI's manager cannot follow.
    """
    import paramiko

    file = Path.home() / ".ssh" / "config" if file is None else file
    if not file.is_file():
        return dict(data)
    try:
        known = paramiko.SSHConfig.from_path(str(file))
    except (paramiko.ConfigParseError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    service = data.get("trainingService")
    services = service if isinstance(service, list) else [service]
    done = [_service(one, known, file) for one in services]
    if service is None:
        return dict(data)
    return {**data, "trainingService": done if isinstance(service, list) else done[0]}


def _service(service: Any, known: Any, file: Path) -> Any:
    if not isinstance(service, Mapping) or service.get("platform") != "remote":
        return service
    result = dict(service)
    for key, machines in service.items():
        if str(key).lower().replace("_", "") == "machinelist" and isinstance(machines, list):
            result[key] = [_machine(one, known, file) for one in machines]
    return result


def _machine(machine: Any, known: Any, file: Path) -> Any:
    if not isinstance(machine, Mapping) or not isinstance(machine.get("host"), str):
        return machine
    host = machine["host"]
    found = known.lookup(host)
    for word in ("proxyjump", "proxycommand"):
        if str(found.get(word, "none")).lower() != "none":
            raise ConfigError(
                f"{file}: {host} is behind {found[word]!r}, which NNI's manager cannot follow; "
                f"open a tunnel (ssh -N -L 2222:localhost:22 {host}), log in through it once "
                "(ssh -p 2222 USER@127.0.0.1), and give host: 127.0.0.1, port: 2222"
            )
    result = {**machine, "host": found.get("hostname", host)}
    given = {str(key).lower().replace("_", "") for key in machine}
    for key, word in _KEYS.items():
        value = found.get(word)
        missing = key.lower() not in given and not (key == "sshKeyFile" and "password" in given)
        if value is None or not missing:
            continue
        one = value[0] if isinstance(value, list) else value
        result[key] = int(one) if key == "port" else str(one)
    return result
