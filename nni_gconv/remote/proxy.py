"""A connection that a command makes, ``ssh -W`` by a machine in between."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile

_SECONDS = 5


class Proxy:
    """A running command whose input and output are :attr:`socket`.

    A pair of sockets, not pipes: timeouts hold, and the command ends when ours is closed, also when
    this process is killed.

    Parameters
    ----------
    command : str
        For the shell.

    Examples
    --------
    >>> proxy = Proxy("cat")
    >>> proxy.socket.sendall(b"there")
    >>> proxy.socket.recv(5)
    b'there'
    >>> proxy.close()
    """

    def __init__(self, command: str) -> None:
        self.socket, other = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the command runs
        with other:
            # A session of its own: Ctrl-C ends what is made through it first, and it cannot ask.
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=other.fileno(), stdout=other.fileno(), stderr=self._errors,
                start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """End the command; safe to call again."""
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """End the command and return the last line of its errors, "" for none."""
        self.close()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return " ".join(lines[-1].split()) if lines else ""
