"""Judging a machine before an experiment: will trials run there, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass

from nni_gconv.remote.machines import Machine
from nni_gconv.remote.probe import MachineFacts, probe
from nni_gconv.remote.ssh import Connection, RemoteError

OK, WARNING, ERROR = "ok", "warning", "error"

_MIB = 1024**2
_LITTLE_DISK, _NO_DISK = 5 * 1024 * _MIB, 500 * _MIB
#: Packages whose versions are compared, by the names they are installed under.
PACKAGES = ("nni", "torch", "torchvision", "nni-gconv")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    level : {"ok", "warning", "error"}
        Whether it hinders the experiment.
    text : str
        One line.
    place : tuple
        Where in the experiment file to fix it.
    machine : str
        Label of the machine, "" for this one.
    """

    level: str
    text: str
    place: tuple[str | int, ...] = ()
    machine: str = ""


@dataclass(frozen=True)
class Wanted:
    """What an experiment wants of each machine.

    Attributes
    ----------
    versions : dict of str to str
        Of the packages here.
    python : str
        Version of Python here.
    program : str
        First word of the trial command, "" where only a shell can tell.
    debug : bool
        Whether the experiment logs at level ``debug`` or ``trace``.
    tunnel : bool
        Whether machines come back through a tunnel.
    """

    versions: dict[str, str]
    python: str
    program: str = ""
    debug: bool = False
    tunnel: bool = True


def check_machine(connection: Connection, wanted: Wanted) -> tuple[MachineFacts, list[Finding]]:
    """Look at a machine and judge what is there.

    Parameters
    ----------
    connection : Connection
        A login there.
    wanted : Wanted
        What trials need.

    Returns
    -------
    facts : MachineFacts
    findings : list of Finding

    Raises
    ------
    RemoteError
        The machine has no usable Python, or is lost.
    """
    machine = connection.machine
    facts = probe(connection, PACKAGES, wanted.program)
    judge = _Judge(machine, facts, wanted)
    judge.python()
    judge.program()
    judge.disk()
    judge.shell()
    if wanted.tunnel:
        check_tunnel(connection)
        judge.say(OK, "a tunnel back to this machine is allowed")
    return facts, judge.findings


def check_tunnel(connection: Connection) -> None:
    """Open a tunnel back from a port of the machine's choice, and close it.

    Raises
    ------
    RemoteError
        Its SSH server does not allow it.
    """
    import paramiko

    try:
        port = connection.transport.request_port_forward("127.0.0.1", 0, lambda *_: None)
        connection.transport.cancel_port_forward("127.0.0.1", port)
    except paramiko.SSHException:
        raise RemoteError(
            f"{connection.machine.label}: its SSH server allows no tunnel back: set "
            "AllowTcpForwarding yes in its sshd_config"
        ) from None


class _Judge:
    """Turns the facts of one machine into findings."""

    def __init__(self, machine: Machine, facts: MachineFacts, wanted: Wanted) -> None:
        self.machine, self.facts, self.wanted = machine, facts, wanted
        self.findings: list[Finding] = []

    def say(self, level: str, text: str, key: str = "host") -> None:
        place = (*self.machine.place, key)
        self.findings.append(Finding(level, text, place, self.machine.label))

    def python(self) -> None:
        facts, here = self.facts, self.wanted.versions
        where = f"in {facts.executable}"
        shown = ", ".join(f"{name} {facts.versions[name]}" for name in facts.versions)
        self.say(OK, f"Python {facts.python} ({facts.executable}): {shown or 'no package of ours'}")
        if _minor(facts.python) != _minor(self.wanted.python):
            self.say(
                WARNING,
                f"Python {facts.python} there, {self.wanted.python} here",
                "pythonPath",
            )
        ours = self.wanted.program == "nni-gconv"
        missing = [name for name in PACKAGES if name not in facts.versions]
        missing = [name for name in missing if ours or name in ("nni", "nni-gconv")]
        # The first says how to install all that is missing, in one line.
        remedy = f": {facts.executable} -m pip install " + " ".join(map(self._pinned, missing))
        remedy += "; or from here: nni-gconv doctor EXPERIMENT.yml --fix"
        for name in missing:
            level = ERROR if ours or name == "nni" else WARNING
            self.say(level, f"{name} is not installed {where}{remedy}", "pythonPath")
            remedy = ""
        for name in PACKAGES:
            there = facts.versions.get(name)
            if there is not None and name in here and _plain(there) != _plain(here[name]):
                level = ERROR if name == "nni" else WARNING
                self.say(level, f"{name} {there} {where}, but {here[name]} here", "pythonPath")

        torch = facts.versions.get("torch", "")
        if facts.gpus and torch.endswith("+cpu"):
            self.say(WARNING, f"it has GPUs, but torch {torch} is built for CPUs", "pythonPath")

    def _pinned(self, name: str) -> str:
        """Name a package in the version that is here, without what a build adds to it."""
        version = self.wanted.versions.get(name, "").partition("+")[0]
        return f"'{name}=={version}'" if version else f"'{name}'"

    def program(self) -> None:
        program = self.wanted.program
        if program and self.facts.program is None:
            self.say(ERROR, f"there is no program {program!r} on its PATH", "pythonPath")

    def disk(self) -> None:
        free = self.facts.free
        shown = f"{free / 1024**3:.1f} GiB free in its home"
        if not self.facts.writable:
            self.say(ERROR, "~/nni-experiments cannot be written there", "user")
        if free < _NO_DISK:
            self.say(ERROR, f"only {shown}")
        else:
            self.say(WARNING if free < _LITTLE_DISK else OK, shown)

    def shell(self) -> None:
        if self.facts.noise:
            first = self.facts.noise.splitlines()[0]
            self.say(
                ERROR,
                f"its login shell prints {first!r}, which NNI takes for answers: silence it in "
                "~/.bashrc for shells that are not interactive",
                "user",
            )
        if self.wanted.debug and not self.facts.route:
            self.findings.append(
                Finding(
                    ERROR,
                    "it has no route to other networks, and NNI's trial keeper then fails at "
                    "logLevel: debug; take info",
                    ("logLevel",),
                    self.machine.label,
                )
            )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _plain(version: str) -> str:
    return version.partition("+")[0]  # builds for CPU and CUDA count as one
