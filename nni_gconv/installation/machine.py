"""Folders, ports, proxies and memory of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nni_gconv.installation.finding import Finding

_GIB = 1024**3

_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
#: The script of NNI's manager, by which its process is known.
_MANAGER = "nni_node/main.js"


def _folders() -> Iterator[Finding]:
    folder = Path.home() / "nni-experiments"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not _writable(there):
        yield Finding(
            "experiments", "error", f"{folder}: not writable (NNI keeps its list there)",
            f"sudo chown -R $USER {there}, or export HOME=A_FOLDER_OF_YOURS",
        )  # fmt: skip
    else:
        free = shutil.disk_usage(there).free / _GIB
        where = f"{folder}, {free:.1f} GiB free"
        hint = f"free space on {there}, or create --output FOLDER on another disk"
        if free < 0.2:
            yield Finding("experiments", "error", where, hint)
        elif free < 5:
            yield Finding("experiments", "warning", where, hint)
        else:
            yield Finding("experiments", "ok", where)
    config = os.environ.get("NNI_CONFIG_DIR")
    place = Path(config) if config else Path(sys.prefix) / "nni"
    if config or sys.prefix != sys.base_prefix:
        there = next(path for path in (place, *place.parents) if path.exists())
        if not _writable(there):
            yield Finding(
                "NNI's algorithms", "error",
                f"{place}: not writable, and NNI keeps its list of algorithms there",
                "export NNI_CONFIG_DIR=$HOME/.config/nni",
            )  # fmt: skip


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _ports() -> Iterator[Finding]:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
            with socket.create_connection(probe.getsockname(), timeout=5):
                pass
        except OSError as error:
            yield Finding(
                "network", "error", f"the loopback interface does not work: {error}",
                "ip link set lo up",
            )  # fmt: skip
            return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            yield Finding(
                "port 8080", "note",
                "taken: nni-gconv create takes a free port by itself, nnictl create does not",
                "nni-gconv create EXPERIMENT.yml",
            )  # fmt: skip
        else:
            yield Finding("network", "ok", "loopback works, port 8080 is free")


def _proxy() -> Iterator[Finding]:
    proxy = next((k for k in ("http_proxy", "HTTP_PROXY", "all_proxy") if os.environ.get(k)), None)
    open_to = f"{os.environ.get('no_proxy', '')},{os.environ.get('NO_PROXY', '')}"
    if proxy and not re.search(r"\blocalhost\b|\*", open_to):
        yield Finding(
            "proxy", "warning",
            f"{proxy} is set and NO_PROXY leaves localhost to it: nnictl and its trials do not "
            "reach their manager (nni-gconv create sets it)",
            "export NO_PROXY=localhost,127.0.0.1",
        )  # fmt: skip


def _shared_memory() -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        size = shutil.disk_usage("/dev/shm").total
        if size < _GIB // 4:
            yield Finding(
                "shared memory", "warning",
                f"/dev/shm has {size // 1024**2} MiB: loading data with workers > 0 may end in a "
                "bus error",
                "docker run --shm-size=2g ..., or data.workers: 0",
            )  # fmt: skip


def _processors() -> Iterator[Finding]:
    from joblib import cpu_count

    usable, all_cores = cpu_count(), len(os.sched_getaffinity(0))
    if usable < all_cores and "OMP_NUM_THREADS" not in os.environ:
        yield Finding(
            "processors", "warning",
            f"{usable} of {all_cores}, as this container's limit allows; torch starts a thread for "
            "each of all, and they wait for each other",
            f"export OMP_NUM_THREADS={usable}, or threads: {usable} in a recipe",
        )  # fmt: skip


def managers() -> Iterator[Finding]:
    """Warn of `nnictl create`, and of managers of it that run just now."""
    ports = set()
    with contextlib.suppress(ImportError):
        ports = set(_open_ports())
    running = f"; running now, open on port {', '.join(map(str, sorted(ports)))}" if ports else ""
    yield Finding(
        "nnictl create", "warning",
        "opens NNI's manager to every network this machine is in, without login: whoever reaches "
        f"it can run commands as you; nni-gconv create closes it{running}",
        "nni-gconv create EXPERIMENT.yml",
    )  # fmt: skip


def _open_ports() -> Iterator[int]:
    """Ports on which a manager of NNI listens for more than this machine."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(word.endswith(_MANAGER) for word in process.cmdline()):
                for one in process.net_connections("tcp"):
                    if one.status == psutil.CONN_LISTEN and one.laddr.ip not in _LOOPBACK:
                        yield one.laddr.port


MACHINE = (_folders, _ports, managers, _proxy, _shared_memory, _processors)
