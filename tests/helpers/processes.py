"""The scripts beside this file in processes of their own, alone or as the ranks of one training.

All are forked from one process that has loaded torch and NNI and done nothing else, since loading
takes seconds of each. They share no state with a test, and can be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pruner_cases", "pruning_nets", "nni_gconv.recipe.run"])


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


def _main(script: str, args: Sequence[str], env: dict[str, str], output: str) -> None:
    """Be ``python script args``; torch's threads and seeds are those of a new process."""
    said = os.open(output, os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")


class Running:
    """The processes of one script."""

    def __init__(self, script: str, args: Sequence[object], ranks: Sequence[dict[str, str]]):
        self._started = []
        for rank in ranks:
            handle, output = tempfile.mkstemp(prefix=Path(script).stem)
            os.close(handle)
            given = (str(HERE / script), [str(arg) for arg in args], {**os.environ, **rank}, output)
            process = _CONTEXT.Process(target=_main, args=given)
            process.start()
            self._started.append((process, Path(output)))

    def signal(self, number: int) -> bool:
        """Send a signal to the first process; False when it has ended already."""
        process = self._started[0][0]
        if not process.is_alive():
            return False
        os.kill(process.pid, number)
        return True

    def finish(self) -> Finished:
        """Wait for the end of all; where one goes wrong the others are ended, as torchrun does."""
        processes = [process for process, _ in self._started]
        code = 0
        while not code and any(process.is_alive() for process in processes):
            time.sleep(0.01)
            code = next((p.exitcode for p in processes if p.exitcode), 0)
        for process in processes:
            if code:
                process.kill()
            process.join()
        code = code or next((p.exitcode for p in processes if p.exitcode), 0)
        said = "".join(output.read_text() for _, output in self._started)
        for _, output in self._started:
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
