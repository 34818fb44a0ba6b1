"""A reverse tunnel: the manager's port on the other machine's loopback leads back to here.

What ``ssh -N -R PORT:127.0.0.1:PORT`` does, with a heartbeat: a machine that has gone without a
word is noticed within seconds, and NNI is told by the end of its connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nni_gconv.remote.machines import Machine
from nni_gconv.remote.ssh import Connection, RemoteError, connect

if TYPE_CHECKING:
    import paramiko

_BEAT_SECONDS = 5.0
_SILENCE_SECONDS = 15.0
_CHUNK = 1 << 16


class ReverseTunnel:
    """A login to one machine that is watched, and the tunnel through it.

    Parameters
    ----------
    machine : Machine
        Where to.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.port: int | None = None
        self._lost_since: float | None = None
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name=f"tunnel to {machine.label}", daemon=True
        )

    @property
    def lost_since(self) -> float | None:
        """Time (``time.time()``) since which the machine is gone; None while it answers."""
        connection = self._connection
        if self._lost_since is None and connection is not None and not self._stopping.is_set():
            with contextlib.suppress(RemoteError):
                connection.transport  # noqa: B018  # raises where it has been closed
                return None
            self._lost_since = time.time()
        return self._lost_since

    def open(self) -> None:
        """Log in and begin to watch the machine.

        Raises
        ------
        RemoteError
            No login.
        """
        self._connection = connect(self.machine)
        self._thread.start()

    def forward(self, port: int) -> None:
        """Open the tunnel; the manager has to listen on `port` already.

        (Else the tunnel would take its place where the "other" machine is this one.)

        Raises
        ------
        RemoteError
            The machine does not allow it.
        """
        self.port = port
        if self._connection is None:
            raise RemoteError(f"{self.machine.label}: the connection is lost")
        _forward(self._connection, port, self._accept)

    def python(self, script: str, *arguments: str) -> None:
        """Run a Python script on the machine.

        Raises
        ------
        RemoteError
            The machine is lost, or the script does not end.
        """
        connection = self._connection
        if connection is None:
            raise RemoteError(f"{self.machine.label}: the connection is lost")
        connection.python(script, *arguments)

    def close(self) -> None:
        """End it; safe to call again."""
        self._stopping.set()
        if self._connection is not None:
            self._connection.close()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _reconnect(self) -> Connection:
        connection = connect(self.machine)
        try:
            if self.port is not None:
                _forward(connection, self.port, self._accept)
        except RemoteError:
            connection.close()
            raise
        return connection

    def _accept(
        self, channel: paramiko.Channel, _origin: tuple[str, int], _server: tuple[str, int]
    ) -> None:
        threading.Thread(target=self._carry, args=(channel,), daemon=True).start()

    def _carry(self, channel: paramiko.Channel) -> None:
        try:
            here = socket.create_connection(("127.0.0.1", self.port or 0), timeout=10)
        except OSError:
            channel.close()
            return
        here.settimeout(None)
        back = threading.Thread(target=_pump_back, args=(here, channel), daemon=True)
        back.start()
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv(_CHUNK):
                here.sendall(data)
        # Half a connection is of no use to a WebSocket: both ends close.
        with contextlib.suppress(OSError):
            here.shutdown(socket.SHUT_RDWR)
        back.join()
        here.close()
        channel.close()

    def _watch(self) -> None:
        while not self._stopping.wait(_BEAT_SECONDS):
            if self._beats():
                self._lost_since = None
                continue
            if self._lost_since is None:
                self._lost_since = time.time()
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            with contextlib.suppress(RemoteError):
                self._connection = self._reconnect()
                if self._stopping.is_set():
                    self._connection.close()

    def _beats(self) -> bool:
        """Ask the machine for a sign of life; a silent one loses its connection."""
        if self._connection is None:
            return False
        try:
            transport = self._connection.transport
        except RemoteError:
            return False
        limit = threading.Timer(_SILENCE_SECONDS, transport.close)
        limit.daemon = True
        limit.start()
        try:
            # Any answer is one, also "unknown request".
            transport.global_request("keepalive@openssh.com", wait=True)
        except (OSError, EOFError):
            return False
        finally:
            limit.cancel()
        return transport.is_active()


def _forward(connection: Connection, port: int, accept: Callable[..., None]) -> None:
    import paramiko

    try:
        connection.transport.request_port_forward("127.0.0.1", port, accept)
    except (paramiko.SSHException, OSError, EOFError):
        if not _reaches_manager(connection, port):
            raise RemoteError(
                f"{connection.machine.label}: no tunnel back: its SSH server does not forward "
                f"(AllowTcpForwarding in sshd_config), or port {port} is taken there"
            ) from None


def _pump_back(here: socket.socket, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := here.recv(_CHUNK):
            channel.sendall(data)
    channel.close()


def _reaches_manager(connection: Connection, port: int) -> bool:
    """Tell whether something of NNI's answers on that port of the machine already.

    So it is with a tunnel of the user's own, and where "another machine" is this one.
    """
    import paramiko

    try:
        channel = connection.transport.open_channel(
            "direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=10
        )
        channel.settimeout(10)
        channel.sendall(b"GET /api/v1/nni/version HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        answer = channel.recv(4096)
        channel.close()
    except (paramiko.SSHException, OSError, EOFError):
        return False
    return answer.startswith(b"HTTP/1.1 200") or b"nni" in answer.lower()
