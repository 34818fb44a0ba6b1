"""Machines to log in to, made of this one: an sshd each, with a home of its own.

As root each is a network namespace behind a pair of virtual cards and a PID namespace, so that it
can lose its power; else it is an address of the loopback network.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
FAKE_NVML = Path(__file__).parent / "fake_nvml"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_SECONDS = 30


def quiet(
    *command: str,
    check: bool = True,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess:
    """Run a command whose output nobody wants to see."""
    return subprocess.run(command, check=check, capture_output=True, text=True, env=env, cwd=cwd)


def can_make_namespaces() -> bool:
    if os.environ.get("TEST_MACHINES") == "loopback" or os.geteuid() != 0:
        return False
    if not shutil.which("ip") or not shutil.which("unshare"):
        return False
    name = f"ngc{os.getpid()}t"
    try:
        quiet("ip", "netns", "add", name)
        quiet("ip", "netns", "exec", name, "unshare", "-p", "-f", "--mount-proc", "true")
        quiet("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1")
        quiet("ip", "link", "del", f"{name}0")
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        quiet("ip", "netns", "del", name, check=False)
    return True


@dataclass
class SshMachine:
    """One machine.

    Attributes
    ----------
    host, port : str, int
        Of its sshd.
    home : Path
        Its home.
    key : Path
        Private key that opens it.
    """

    host: str
    port: int
    home: Path
    key: Path
    process: subprocess.Popen | None = None
    namespace: str | None = None
    card: str | None = None

    @property
    def entry(self) -> dict:
        """Its entry in a machineList."""
        return {
            "host": self.host, "port": self.port, "user": getpass.getuser(),
            "sshKeyFile": str(self.key), "pythonPath": str(self.home / "bin"),
        }  # fmt: skip

    @property
    def experiments(self) -> Path:
        return self.home / "nni-experiments"

    def start(self) -> None:
        command = [SSHD, "-D", "-e", "-f", str(self.home.parent / f"{self.home.name}.conf")]
        if self.namespace:
            inside = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
            command = ["ip", "netns", "exec", self.namespace, *inside, *command]
        with (self.home.parent / f"{self.home.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 5):
                return
            time.sleep(0.1)
        log = (self.home.parent / f"{self.home.name}.log").read_text()
        self.kill()
        pytest.skip(f"sshd does not run here: {log.strip().splitlines()[-1:]}")

    def cut(self) -> None:
        """Pull the network cable; only in a namespace."""
        quiet("ip", "-n", self.namespace, "link", "set", "eth0", "down")

    def kill(self) -> None:
        """End everything that runs there at once, as a loss of power does."""
        if self.process is None:
            return
        if self.namespace:
            # unshare takes the first process of its PID namespace, and so all of them, along.
            self.process.send_signal(signal.SIGKILL)
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("TEST_MACHINE") == str(self.home):
                    process.kill()
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(self.process.pid)
            for child in [*parent.children(recursive=True), parent]:
                child.kill()
        self.process.wait(_SECONDS)
        self.process = None

    def close(self) -> None:
        self.kill()
        if self.namespace:
            quiet("ip", "link", "del", self.card, check=False)
            quiet("ip", "netns", "del", self.namespace, check=False)


def make_machines(folder: Path, count: int = 2, **environment: str) -> list[SshMachine]:
    """Make and start machines; skips the test where there is no sshd.

    Parameters
    ----------
    folder : Path
        For homes, keys and logs.
    count : int
        How many.
    environment : str
        Variables of every login there.
    """
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd on this machine (openssh-server)")
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    separate = can_make_namespaces()
    machines = []
    try:
        for index in range(count):
            machine = _prepare(folder, key, index, separate, environment)
            machines.append(machine)
            machine.start()
    except BaseException:
        for machine in machines:
            machine.close()
        raise
    return machines


def _prepare(
    folder: Path, key: Path, index: int, separate: bool, environment: dict[str, str]
) -> SshMachine:
    home = folder / f"machine{index + 1}"
    home.mkdir()
    if separate:
        namespace, card = f"ngc{os.getpid()}n{index}", f"ngc{os.getpid()}v{index}"
        subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        ours, host, port = f"{subnet}.{4 * index + 1}", f"{subnet}.{4 * index + 2}", 2222
        quiet("ip", "netns", "add", namespace)
        quiet("ip", "link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        quiet("ip", "addr", "add", f"{ours}/30", "dev", card)
        quiet("ip", "link", "set", card, "up")
        quiet("ip", "-n", namespace, "addr", "add", f"{host}/30", "dev", "eth0")
        quiet("ip", "-n", namespace, "link", "set", "eth0", "up")
        quiet("ip", "-n", namespace, "link", "set", "lo", "up")
    else:
        namespace = card = None
        host, port = f"127.0.0.{index + 2}", free_port(f"127.0.0.{index + 2}")
    quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / f"host{index + 1}"))
    helpers = ROOT / "tests" / "helpers"
    given = filter(None, [os.environ.get("PYTHONPATH")])
    path = os.pathsep.join([*map(str, (FAKE_NVML, ROOT, helpers / "warm", helpers)), *given])
    variables = {
        "HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1",
        "TEST_MACHINE": str(home), "NNI_GCONV_SLOT_FOLDER": str(home / "slots"),
        **environment,
    }  # fmt: skip
    (home / "bin").mkdir()
    for name, call in (("python", '"$@"'), ("nni-gconv", '-m nni_gconv "$@"')):
        script = home / "bin" / name
        script.write_text(
            "#!/bin/sh\n"
            f'case "$*" in *"pip install"*) touch {home}/pip_was_called; exit 1;; esac\n'
            f"exec {sys.executable} {call}\n"
        )
        script.chmod(0o755)
    settings = [
        f"ListenAddress {host}:{port}",
        f"HostKey {folder / f'host{index + 1}'}",
        f"AuthorizedKeysFile {key}.pub",
        f"PidFile {home}.pid",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "Subsystem sftp internal-sftp",
        "SetEnv " + " ".join(f'{name}="{value}"' for name, value in variables.items()),
    ]
    (folder / f"machine{index + 1}.conf").write_text("\n".join(settings) + "\n")
    return SshMachine(host, port, home, key, namespace=namespace, card=card)


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def trust(home: Path, machines: list[SshMachine]) -> None:
    """Write the machines' host keys into the known_hosts of a home."""
    lines = []
    for machine in machines:
        public = machine.home.parent / machine.home.name.replace("machine", "host")
        kind, key = public.with_suffix(".pub").read_text().split()[:2]
        lines.append(f"[{machine.host}]:{machine.port} {kind} {key}")
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh" / "known_hosts").write_text("\n".join(lines) + "\n")
