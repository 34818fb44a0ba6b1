"""The scripts beside this file in processes of their own, alone or as the ranks of one training.

All are forked from one process that has loaded torch and NNI and done nothing else, since loading
takes seconds of each; see ``warm_server.py``. They share no state with a test, and can be killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from warm.asking import Asked

HERE = Path(__file__).parent
#: As tests find it, before they change it.
_ENVIRONMENT = dict(os.environ)
#: Of one run of pytest, all its workers share it.
_WARM = Path(_ENVIRONMENT["WARM_FOLDER"])
_SECONDS = 120


def warm_socket(name: str) -> str:
    """Return a socket of this run's warm server, which is started if it is the first to ask."""
    place, started = _WARM / name, None
    with FileLock(_WARM / "lock"):
        if not (_WARM / "plain").exists():
            given = _ENVIRONMENT.get("PYTHONPATH")
            paths = os.pathsep.join(filter(None, [given, str(HERE)]))
            words = [str(HERE / "warm_server.py"), str(_WARM), _ENVIRONMENT["WARM_OWNER"]]
            started = subprocess.Popen(
                [sys.executable, *words],
                env={**_ENVIRONMENT, "PYTHONPATH": paths},
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + _SECONDS
        while not place.exists():
            assert time.monotonic() < deadline, f"no warm server in {_SECONDS} s"
            assert started is None or started.poll() is None, "the warm server ended"
            time.sleep(0.05)
    return str(place)


@dataclass
class Finished:
    """How a script ended; `code` is that of the first process that went wrong, `said` all output.

    A signal is its negative number.
    """

    code: int
    said: str


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Running:
    """The processes of one script."""

    def __init__(self, script: str, args: Sequence[object], ranks: Sequence[dict[str, str]]):
        self._started = []
        argv = [str(HERE / script), *map(str, args)]
        place = warm_socket("nni")
        for rank in ranks:
            handle, output = tempfile.mkstemp(prefix=Path(script).stem)
            nothing = os.open(os.devnull, os.O_RDONLY)
            env = {**os.environ, **rank}
            process = Asked(place, argv, str(Path.cwd()), env, [nothing, handle, handle])
            os.close(nothing)
            os.close(handle)
            self._started.append((process, Path(output)))

    def signal(self, number: int) -> bool:
        """Send a signal to the first process; False when it has ended already."""
        process = self._started[0][0]
        if process.wait(0) is not None:
            return False
        process.signal(number)
        return True

    def finish(self) -> Finished:
        """Wait for the end of all; where one goes wrong the others are ended, as torchrun does."""
        processes = [process for process, _ in self._started]
        code = 0
        while not code and None in (codes := [process.wait(0.01) for process in processes]):
            code = next(filter(None, codes), 0)
        for process in processes:
            process.signal(signal.SIGKILL)
        code = code or next(filter(None, [process.wait() for process in processes]), 0)
        said = "".join(output.read_text() for _, output in self._started)
        for process, output in self._started:
            process.close()
            output.unlink()
        return Finished(code, said)


def start(script: str, *args: object, processes: int = 1) -> Running:
    """Start a script of this folder in so many processes, with what torchrun tells each."""
    if processes == 1:
        return Running(script, args, [{}])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    return Running(script, args, ranks)


def run(script: str, *args: object, processes: int = 1) -> Finished:
    """Run a script of this folder to its end."""
    return start(script, *args, processes=processes).finish()


def launch_with_torchrun(
    script: str, directory: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in two processes of a real torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    command += [str(HERE / script), str(directory), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def written_by_ranks(script: str, folder: Path, name: str, processes: int) -> list[dict]:
    """Run a script with a folder; return the JSON that each process wrote to ``NAME-RANK.json``."""
    done = run(script, folder, processes=processes)
    assert done.code == 0, done.said
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(processes)]
