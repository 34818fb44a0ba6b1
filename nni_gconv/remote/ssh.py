"""Logging in to a machine: its host key is verified, and what goes wrong is one line."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import socket
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from nni_gconv.errors import ConfigError, NniGconvError
from nni_gconv.remote.machines import Machine
from nni_gconv.remote.proxy import Proxy
from nni_gconv.remote.ssh_config import Way, way_to

if TYPE_CHECKING:
    import paramiko

_SECONDS = 20.0
_GLOBAL_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


class RemoteError(NniGconvError):
    """A machine cannot be used.

    Attributes
    ----------
    key : str
        Key of the machine's entry in the experiment file that is to be looked at.
    machine : Machine or None
        Which one; set where several are tried.
    """

    def __init__(self, message: str, key: str = "host", machine: Machine | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.machine = machine


@dataclass(frozen=True)
class Finished:
    """A command that has ended on the other machine."""

    code: int
    out: str
    err: str


class Connection:
    """An open login; made by :func:`connect`, closed by ``with``.

    Parameters
    ----------
    machine : Machine
        Where to.
    client : paramiko.SSHClient
        Logged in.
    proxy : Proxy, optional
        What the connection goes through; closed with it.
    """

    def __init__(
        self, machine: Machine, client: paramiko.SSHClient, proxy: Proxy | None = None
    ) -> None:
        self.machine = machine
        self.client = client
        self._proxy = proxy

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the login; safe to call again."""
        with contextlib.suppress(Exception):
            self.client.close()
        if self._proxy is not None:
            self._proxy.close()

    @property
    def transport(self) -> paramiko.Transport:
        """The connection below the login.

        Raises
        ------
        RemoteError
            It is lost.
        """
        transport = self.client.get_transport()
        if transport is None or not transport.is_active():
            raise RemoteError(f"{self.machine.label}: the connection is lost")
        return transport

    def run(self, command: str, *, timeout: float = 60.0, stdin: str = "") -> Finished:
        """Run a command as NNI does: through the login shell, with ``pythonPath`` first on PATH.

        Raises
        ------
        RemoteError
            The connection is lost, or the command does not end in `timeout` seconds.
        """
        import paramiko

        if self.machine.python_path:
            path = shlex.quote(self.machine.python_path)
            command = f'PATH={path}:"$PATH"; export PATH; {command}'
        try:
            given, out, err = self.client.exec_command(command, timeout=timeout)
            if stdin:
                given.write(stdin)
            given.channel.shutdown_write()
            text, words = out.read(), err.read()
            return Finished(
                out.channel.recv_exit_status(),
                text.decode("utf-8", "replace").strip(),
                words.decode("utf-8", "replace").strip(),
            )
        except TimeoutError:
            raise RemoteError(
                f"{self.machine.label}: no end in {timeout:.0f} s of: {command}"
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise RemoteError(f"{self.machine.label}: {_words(error)}") from None

    def python(self, script: str, *arguments: str, timeout: float = 60.0) -> Finished:
        """Run a Python script there, with the python that NNI would choose."""
        words = " ".join(shlex.quote(argument) for argument in arguments)
        return self.run(f"{self.python_command} - {words}", timeout=timeout, stdin=script)

    @property
    def python_command(self) -> str:
        """``python`` of ``pythonPath`` where one is given, else the first on PATH."""
        if self.machine.python_path:
            folder = shlex.quote(self.machine.python_path)
            return f"$(test -x {folder}/python && echo {folder}/python || echo {folder}/python3)"
        return "$(command -v python || echo python3)"


def connect(machine: Machine, *, timeout: float = _SECONDS) -> Connection:
    """Log in to a machine whose host key is known, through others where ``~/.ssh/config`` says so.

    Parameters
    ----------
    machine : Machine
        Where to, and with which key.
    timeout : float, default 20
        Seconds for each step.

    Returns
    -------
    Connection

    Raises
    ------
    RemoteError
        One line with the reason, and the key of the file that it is about.

    Examples
    --------
    >>> connect(Machine("127.0.0.1", 1, "me"))  # doctest: +SKIP
    RemoteError: me@127.0.0.1:1: nobody listens on port 1
    """
    import paramiko

    _quiet_paramiko()
    where = machine.label
    if machine.key_file is not None and not machine.key_file.is_file():
        raise RemoteError(f"{where}: no key file {machine.key_file}", "sshKeyFile")
    try:
        way = way_to(machine)
    except ConfigError as error:
        raise RemoteError(str(error)) from None
    proxy = Proxy(way.command) if way.command is not None else None
    client = paramiko.SSHClient()
    for file in _known_hosts_files(way):
        with contextlib.suppress(OSError):
            client.load_system_host_keys(str(file))
    client.set_missing_host_key_policy(_refuse_unknown(machine))
    # By an alias, a key is known whatever the port; paramiko would put it into the name.
    name, port = (way.alias, 22) if way.alias else (way.host, machine.port)
    try:
        link = None if proxy is None else proxy.socket
        if link is None and way.alias:
            link = socket.create_connection((way.host, machine.port), timeout)
        client.connect(
            name, port, machine.user, sock=link,
            password=machine.password,
            key_filename=str(machine.key_file) if machine.key_file else None,
            passphrase=machine.passphrase,
            look_for_keys=False, timeout=timeout, banner_timeout=timeout, auth_timeout=timeout,
        )  # fmt: skip
    except BaseException as error:
        client.close()
        said = proxy.last_words() if proxy is not None else ""
        if not isinstance(error, (paramiko.SSHException, OSError, EOFError, ValueError)):
            raise
        if said and not _said_by_machine(error):
            raise RemoteError(
                f"{where}: no way there behind {way.behind!r}: {said}; "
                f"try it by hand: {machine.ssh_command}"
            ) from None
        raise _explained(machine, error, timeout) from None
    return Connection(machine, client, proxy)


def _said_by_machine(error: BaseException) -> bool:
    """Tell whether the machine itself has answered, and so the way there is open."""
    import paramiko

    kinds = paramiko.BadHostKeyException, paramiko.AuthenticationException
    return isinstance(error, kinds)


def _refuse_unknown(machine: Machine) -> paramiko.MissingHostKeyPolicy:
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):
        def missing_host_key(
            self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
        ) -> None:
            raise RemoteError(
                f"{machine.label}: its host key is not known ({key.get_name()} {_digest(key)}); "
                f"log in once by hand and compare: {machine.ssh_command}"
            )

    return Refuse()


def _explained(machine: Machine, error: BaseException, timeout: float) -> RemoteError:
    import paramiko

    key, place = machine.key_file, "host"
    if isinstance(error, paramiko.BadHostKeyException):
        words = (
            f"its host key has changed, is now {error.key.get_name()} {_digest(error.key)}: "
            "another machine may answer in its place; if you know why, forget the old one with: "
            f"{_forget(machine)}"
        )
    elif isinstance(error, paramiko.PasswordRequiredException):
        words = f"the key {key} has a passphrase: give it to an agent with ssh-add {key}"
        place = "sshKeyFile"
    elif isinstance(error, paramiko.AuthenticationException):
        means = "the password" if machine.password else f"the key {key}"
        words = f"login refused with {means}; try it by hand: {machine.ssh_command}"
        place = "password" if machine.password else "sshKeyFile"
    elif isinstance(error, socket.gaierror):
        words = "there is no machine of that name"
    elif isinstance(error, TimeoutError):
        words = f"no answer in {timeout:.0f} s"
    elif isinstance(error, paramiko.ssh_exception.NoValidConnectionsError | ConnectionRefusedError):
        reasons = list(getattr(error, "errors", {}).values()) or [error]
        refused = all(isinstance(reason, ConnectionRefusedError) for reason in reasons)
        words = f"nobody listens on port {machine.port}" if refused else _words(reasons[0])
        place = "port" if refused else "host"
    elif "protocol banner" in str(error):
        words = f"what answers on port {machine.port} is no SSH server, or too busy to say so"
        place = "port"
    elif isinstance(error, ValueError) or "private key" in str(error).lower():
        words = f"{key} is no private key: {_words(error)}"
        place = "sshKeyFile"
    else:
        words = _words(error)
    return RemoteError(f"{machine.label}: {words}", place)


def known_host_keys(machine: Machine) -> dict[str, str]:
    """Return the host keys that are known of a machine: type -> SHA-256 in hexadecimal."""
    import paramiko

    keys = paramiko.HostKeys()
    way = way_to(machine)
    for file in _known_hosts_files(way):
        with contextlib.suppress(OSError):
            keys.load(str(file))
    found = keys.lookup(way.known_name(machine.port))
    if found is None:
        return {}
    return {kind: hashlib.sha256(found[kind].asbytes()).hexdigest() for kind in found}


def _forget(machine: Machine) -> str:
    """Write the command that takes a machine's host key out of the file where it is known."""
    way = way_to(machine)
    where = ["-f", str(way.known_hosts[0])] if way.known_hosts else []
    return shlex.join(["ssh-keygen", *where, "-R", way.known_name(machine.port)])


def _known_hosts_files(way: Way) -> list[Path]:
    own = way.known_hosts
    files = (Path.home() / ".ssh" / "known_hosts",) if own is None else own
    return [file for file in (*files, _GLOBAL_KNOWN_HOSTS) if file.is_file()]


def _digest(key: paramiko.PKey) -> str:
    """Write a fingerprint as ssh does."""
    return "SHA256:" + b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _quiet_paramiko() -> None:
    """Keep tracebacks of its background thread off the terminal: errors come as exceptions."""
    import logging

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
