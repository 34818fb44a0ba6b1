"""Processes forked from one that has loaded what they need: warm_server.py FOLDER PID.

It serves two sockets in a folder until that is gone, or the process `PID`. At ``plain`` NNI itself
is not loaded, for it looks at the environment of a trial or a dispatcher when it is imported; what
it loads of others is. At ``nni`` NNI and the pruners are loaded too, for pytest's workers and the
scripts of ``processes.py``. What a killed process has asked for is killed too.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

# What NNI and its commands load, and a report.
import jinja2  # noqa: F401
import json_tricks  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import pandas  # noqa: F401
import paramiko  # noqa: F401
import psutil
import requests  # noqa: F401
import scipy.optimize
import scipy.spatial
import scipy.stats  # noqa: F401
import torch
import torch.utils.tensorboard

import nni_gconv.cli
import nni_gconv.recipe.load
from nni_gconv.compat import nni_trial
from nni_gconv.errors import ConfigError
from nni_gconv.graph import trace
from nni_gconv.profiling import count
from nni_gconv.training.data import DataSettings, load_data


def warm_up() -> None:
    """Load digits, and what torch loads at the first step and the first trace."""
    load_data(DataSettings(name="digits"))
    with torch.random.fork_rng(devices=[]):
        net = torch.nn.Conv2d(1, 1, 1)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    example = torch.zeros(1, 1, 2, 2)
    trace(net, example)
    count(net, example)


def be(asked: list[str], folder: str, env: dict[str, str], files: list[int], asker: int) -> None:
    """Be ``python`` with the arguments `asked` in this process, which `asker` waits for."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Perhaps a test has put another one on that path.
    sys.modules.pop("pynvml", None)
    tempfile.tempdir = None
    os.chdir(folder)
    if asked[0] != "-c":
        warnings.simplefilter("ignore")
    # To others the trial is the process that asks, and not what an earlier manager left of it.
    end_leftovers = nni_trial.end_leftovers
    nni_trial.end_leftovers = mock.patch("os.getpid", lambda: asker)(end_leftovers)
    if asked[0] == "-m":
        sys.argv = asked[1:]
        runpy.run_module(asked[1], run_name="__main__", alter_sys=True)
    elif asked[0] == "-c":
        sys.argv = asked[:1]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(asked[1], main.__dict__)
    else:
        sys.argv = asked
        sys.path.insert(0, str(Path(asked[0]).parent))
        runpy.run_path(asked[0], run_name="__main__")


def fork(server: socket.socket, asker: socket.socket) -> int:
    """Start what one process asks for."""
    size, files, _, _ = socket.recv_fds(asker, 4, 3)
    credentials = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
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
            be(*json.loads(words), files, int.from_bytes(credentials[:4], sys.byteorder))
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


def serve(place: Path, wanted: Callable[[], bool]) -> None:
    """Fork what is asked for at a socket while it is wanted."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{place}.new")
    server.listen(64)
    Path(f"{place}.new").rename(place)  # whoever finds it can connect
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[socket.socket, int] = {}
    while wanted():
        for ready in select.select([server, ended, *running], [], [], 2)[0]:
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


def load_for_tests() -> None:
    """Load NNI, the package and what else tests import."""
    modules = [module.name for module in pkgutil.walk_packages(nni_gconv.__path__, "nni_gconv.")]
    others = ("pytest", "hypothesis", "torchvision.models", "selenium.webdriver.chrome.webdriver")
    for name in ("pruner_cases", "pruning_nets", *others, *modules):
        if not name.endswith("__main__"):
            with contextlib.suppress(ImportError, ConfigError):  # of an extra
                importlib.import_module(name)


def main() -> None:
    folder, owner = Path(sys.argv[1]), int(sys.argv[2])
    warm_up()
    gc.freeze()

    def wanted() -> bool:
        return folder.is_dir() and psutil.pid_exists(owner)

    name = "plain" if os.fork() else "nni"
    if name == "nni":
        load_for_tests()
        gc.freeze()
    serve(folder / name, wanted)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # some libraries complain of what an interpreter that ends leaves


if __name__ == "__main__":
    main()
