"""Experiments on machines elsewhere: what the file must say of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError
from nni_gconv.remote import machines_of

_LOOPBACK = ("127.0.0.1", "localhost")


def platform_of(config: Any) -> str:
    """Return the training service's name, ``hybrid`` for a list of them."""
    service = config.training_service
    return "hybrid" if isinstance(service, list) else str(service.platform)


def services_of(config: Any) -> list[Any]:
    """Return the training services: one, or the several of a hybrid experiment."""
    service = config.training_service
    return list(service) if isinstance(service, list) else [service]


def with_tunnel_end(data: Mapping[str, Any]) -> dict[str, Any]:
    """Say in an experiment file that has machines where they find the manager: their tunnel's end.

    Examples
    --------
    >>> with_tunnel_end({"trainingService": [{"platform": "remote"}]})["nniManagerIp"]
    '127.0.0.1'
    """
    service = data.get("trainingService")
    services = service if isinstance(service, list) else [service]
    remote = any(isinstance(one, dict) and one.get("platform") == "remote" for one in services)
    given = any(key.lower().replace("_", "") == "nnimanagerip" for key in map(str, data))
    return {**data, "nniManagerIp": "127.0.0.1"} if remote and not given else dict(data)


def check_machine_list(service: Mapping[str, Any], where: str) -> None:
    """Check what a file says of its machines, with the place in front of each message.

    Parameters
    ----------
    service : mapping
        A training service as it stands in the file.
    where : str
        Its place, ``trainingService``.

    Raises
    ------
    ConfigError
        No machine, or one without a host, a user or a way to log in.
    """
    if service.get("platform") != "remote":
        return
    keys = {str(key).lower().replace("_", ""): key for key in service}
    machines = service.get(keys.get("machinelist", "machineList"))
    if not isinstance(machines, list) or not machines:
        raise ConfigError(f"{where}.machineList is not set: a list of host, user, sshKeyFile")
    for index, machine in enumerate(machines):
        place = f"{where}.machineList[{index}]"
        if not isinstance(machine, Mapping):
            raise ConfigError(f"{place}: expected host, user, sshKeyFile, this is {machine!r:.60}")
        given = {str(key).lower().replace("_", ""): value for key, value in machine.items()}
        for key in ("host", "user"):
            if not given.get(key):
                raise ConfigError(f"{place}.{key} is not set")
        if given.get("password") is None:
            key_file = given.get("sshkeyfile", "~/.ssh/id_rsa")
            if not Path(str(key_file)).expanduser().is_file():
                raise ConfigError(
                    f"{place}.sshKeyFile: no such file: {key_file} "
                    "(make one with: ssh-keygen -t ed25519)"
                )


def remote_notes(config: Any, *, loopback: bool) -> list[str]:
    """Check the services of an experiment that does not run on this machine alone.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        Canonical.
    loopback : bool
        Whether the manager listens on 127.0.0.1 only.

    Returns
    -------
    list of str
        What is allowed but unwise.

    Raises
    ------
    ConfigError
        Machines could never reach the manager, or the services cannot be combined.
    """
    services = services_of(config)
    platforms = [str(service.platform) for service in services]
    foreign = sorted({name for name in platforms if name not in ("local", "remote")})
    if foreign and loopback:
        raise ConfigError(
            f"trainingService: {foreign[0]} connects back to this machine, and NNI's server has "
            "no login: pass --all-interfaces on a network you trust"
        )
    if not foreign:
        for name in ("local", "remote"):
            if platforms.count(name) > 1:
                raise ConfigError(
                    f"trainingService: {name} stands there {platforms.count(name)} times; "
                    "put all machines into the machineList of one"
                )
    notes = []
    for service in services:
        if service.platform != "remote" or not loopback:
            continue
        if service.nni_manager_ip not in _LOOPBACK:
            raise ConfigError(
                f"nniManagerIp: {service.nni_manager_ip}: NNI's server has no login and stays on "
                "127.0.0.1; leave nniManagerIp out, and machines come back through SSH tunnels, or "
                "pass --all-interfaces on a network you trust"
            )
    for machine in machines_of(config.training_service):
        for key, value in (("password", machine.password), ("sshPassphrase", machine.passphrase)):
            if value:
                place = f"{machine.place_text}.{key}"
                notes.append(
                    f"{place}: NNI keeps it in its database and serves it without login; use a "
                    "key, and ssh-add for its passphrase"
                )
    return notes
