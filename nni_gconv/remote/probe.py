"""What a machine has: Python, versions, disk, GPUs, read by one script that runs there."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from nni_gconv.remote.ssh import Connection, RemoteError

# Runs on any Python 3 with nothing installed. GPUs come from nvidia-ml-py, which NNI brings along.
_SCRIPT = r"""
import json, os, platform, shutil, socket, sys
try:
    from importlib.metadata import version
except ImportError:
    version = None
found = {"python": platform.python_version(), "executable": sys.executable, "versions": {}}
for name in sys.argv[2:]:
    try:
        found["versions"][name] = version(name)
    except Exception:
        pass
home = os.path.expanduser("~")
found["home"] = home
found["free"] = shutil.disk_usage(home).free
kept = os.path.join(home, "nni-experiments")
found["writable"] = os.access(kept if os.path.isdir(kept) else home, os.W_OK)
found["program"] = shutil.which(sys.argv[1]) if sys.argv[1] else None
try:
    import nni_gconv.slots
    from nni_gconv._version import __version__
    found["versions"]["nni-gconv"] = __version__
    slots = nni_gconv.slots.machine_slots()
    found["gpus"], found["no_gpu"] = list(slots.names), slots.reason
except Exception:
    try:
        import pynvml
        pynvml.nvmlInit()
        found["gpus"] = [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception as error:
        found["no_gpu"] = str(error)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
        probe.connect(("192.0.2.0", 80))
        found["route"] = True
    except OSError:
        found["route"] = False
print("@@" + json.dumps(found))
"""


@dataclass(frozen=True)
class MachineFacts:
    """What was found on a machine.

    Attributes
    ----------
    python, executable : str
        Version and path of the Python that trials get.
    versions : dict of str to str
        Of the packages asked for that are there, by their names in a registry.
    program : str or None
        Path of the program asked for.
    free : int
        Bytes free in the home.
    writable : bool
        Whether experiments can be kept there.
    gpus : tuple of str
        GPUs that trials may take.
    no_gpu : str
        Why there is none.
    route : bool
        Whether there is a way to other networks.
    noise : str
        What its login shell prints without being asked.
    """

    python: str
    executable: str
    versions: dict[str, str]
    program: str | None
    free: int
    writable: bool
    gpus: tuple[str, ...] = ()
    no_gpu: str = ""
    route: bool = True
    noise: str = ""


def probe(connection: Connection, packages: tuple[str, ...], program: str = "") -> MachineFacts:
    """Look at a machine.

    Parameters
    ----------
    connection : Connection
        A login there.
    packages : tuple of str
        Packages whose versions are asked for.
    program : str
        A program to look for on PATH.

    Returns
    -------
    MachineFacts

    Raises
    ------
    RemoteError
        No Python where the file says, or it does not run; ``key`` is ``pythonPath``.
    """
    machine, folder = connection.machine, connection.machine.python_path
    noise = connection.run("true").out
    if folder is not None:
        quoted = shlex.quote(folder)
        kind = connection.run(
            f"if test -f {quoted}/python && test -x {quoted}/python; then echo ok; "
            f"elif test -f {quoted}/python3 && test -x {quoted}/python3; then echo ok; "
            f"elif test -d {quoted}; then echo empty; elif test -e {quoted}; then echo file; "
            "else echo none; fi"
        ).out.rpartition("\n")[2]
        words = {
            "empty": f"there is no python in {folder}",
            "file": f"{folder} is a file; write the folder that python lies in",
            "none": f"there is no folder {folder}",
        }.get(kind)
        if words is not None:
            raise RemoteError(f"{machine.label}: {words}", "pythonPath")
    ended = connection.python(_SCRIPT, program, *packages)
    _, mark, text = ended.out.rpartition("@@")
    if ended.code != 0 or not mark:
        last = (ended.err or ended.out).strip().splitlines()[-1:] or ["it said nothing"]
        raise RemoteError(f"{machine.label}: its python does not run: {last[0]}", "pythonPath")
    found = json.loads(text)
    return MachineFacts(
        python=found["python"],
        executable=found["executable"],
        versions=found["versions"],
        program=found["program"],
        free=found["free"],
        writable=found["writable"],
        gpus=tuple(found.get("gpus", ())),
        no_gpu=found.get("no_gpu", ""),
        route=found["route"],
        noise=noise,
    )
