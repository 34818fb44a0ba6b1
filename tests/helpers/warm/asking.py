"""What asks a warm server for a process, and hears how it ended; see ``warm_server.py``."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn


class Asked:
    """A process that a warm server forked; it is killed when this is closed or its asker dies."""

    def __init__(
        self,
        place: str,
        argv: Sequence[str],
        folder: str,
        env: dict[str, str],
        files: Sequence[int],
    ) -> None:
        """Ask the server at `place` to be ``python *argv``; `files` are its first descriptors."""
        words = json.dumps([list(argv), folder, env]).encode()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(place)
        socket.send_fds(self._server, [len(words).to_bytes(4, "big")], files)
        self._server.sendall(words)
        self._answers = self._server.makefile()
        self.pid = int(self._answers.readline())
        self._code: int | None = None

    def wait(self, seconds: float | None = None) -> int | None:
        """Return its exit status, a signal as a negative number; None if it lives on so long."""
        if self._code is None and select.select([self._server], [], [], seconds)[0]:
            self._code = int(self._answers.readline() or -signal.SIGKILL)
        return self._code

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended and its number may be another's."""
        if self.wait(0) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        self._answers.close()
        self._server.close()


def stand_for(place: str, argv: Sequence[str], *signals: int) -> NoReturn:
    """Let the server at `place` be this process: pass `signals` on, and end as what it forks."""
    child = Asked(place, argv, os.getcwd(), dict(os.environ), [0, 1, 2])  # noqa: PTH109
    for number in signals:
        signal.signal(number, lambda number, _: child.signal(number))
    code = child.wait()
    assert code is not None
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
