"""Processes forked from one that has loaded what they need: warm_server.py SOCKET.

What asks is ``sitecustomize.py`` in ``warm``. NNI itself is not loaded here, for it looks at the
environment of a trial or a dispatcher when it is imported; what it loads of others is. What a
killed process has asked for is killed too.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path

# What NNI and its commands load, and a report.
import jinja2  # noqa: F401
import json_tricks  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import pandas  # noqa: F401
import paramiko  # noqa: F401
import requests  # noqa: F401
import scipy.optimize
import scipy.spatial
import scipy.stats  # noqa: F401

# What a trial of digits loads.
import sklearn.datasets  # noqa: F401
import torch
import torch.utils.tensorboard

import nni_gconv.cli
import nni_gconv.recipe.load  # noqa: F401
from nni_gconv.compat import nni_trial
from nni_gconv.graph import trace
from nni_gconv.profiling import count


def warm_up() -> None:
    """Load what torch loads at the first step and the first trace."""
    net = torch.nn.Conv2d(1, 1, 1)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    example = torch.zeros(1, 1, 2, 2)
    trace(net, example)
    count(net, example)


def be(asked: list[str], folder: str, env: dict[str, str], files: list[int]) -> None:
    """Be ``python`` with the arguments `asked` in this process."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Perhaps a test has put another one on that path.
    sys.modules.pop("pynvml", None)
    tempfile.tempdir = None
    os.chdir(folder)
    if asked[0] == "-m":
        # It would take the process that asks for one that an earlier manager left.
        nni_trial.end_leftovers = lambda: 0
        sys.argv = asked[1:]
        runpy.run_module(asked[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = asked
        sys.path.insert(0, str(Path(asked[0]).parent))
        runpy.run_path(asked[0], run_name="__main__")


def fork(server: socket.socket, asker: socket.socket) -> int:
    """Start what one process asks for."""
    size, files, _, _ = socket.recv_fds(asker, 4, 3)
    words = b""
    while len(words) < int.from_bytes(size, "big"):
        words += asker.recv(1 << 16)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            server.close()
            asker.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            be(*json.loads(words), files)
            code = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for file in files:
        os.close(file)
    asker.sendall(f"{child}\n".encode())
    return child


def main() -> None:
    warm_up()
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[socket.socket, int] = {}
    parent = os.getppid()
    while os.getppid() == parent:
        for ready in select.select([server, ended, *running], [], [], 5)[0]:
            if ready is server:
                asker = server.accept()[0]
                running[asker] = fork(server, asker)
            elif ready is not ended:  # gone: it has nothing more to say
                os.kill(running[ready], signal.SIGKILL)
            else:
                ended.recv(1 << 10)
        for asker, child in [*running.items()]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                del running[asker]
                with contextlib.suppress(OSError), asker:
                    asker.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    for child in running.values():
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
