"""What of an installation will not work, and the line that mends it: ``nni-gconv doctor``.

Needs nothing but Python to start (``python -m nni_gconv.installation``), and loads what it looks
at in processes of their own: a library that crashes is a finding, not the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Finding", "blocks", "examine"]

_SECONDS = 180  # for an import on a machine that is busy
_GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
        What was looked at.
    state : str
        ``ok``, ``note`` (works, but something is missing), ``warning`` (some things will not
        work) or ``error`` (blocks).
    text : str
        What was found.
    remedy : str
        The line that mends it; "" where nothing has to be mended.
    """

    what: str
    state: str
    text: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    def line(self) -> str:
        """Return it as plain text, the remedy on a line of its own."""
        mend = f"\n         mend: {self.remedy}" if self.remedy else ""
        return f"{self.state:8} {self.what}: {self.text}{mend}"


def examine() -> list[Finding]:
    """Look at the installation of this Python.

    Returns
    -------
    list of Finding
        In the order in which they are best mended.

    Examples
    --------
    >>> found = examine()  # doctest: +SKIP
    >>> [one.remedy for one in found if one.state == "error"]  # doctest: +SKIP
    ["pip install 'setuptools>=77.0.3,<81'"]
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python, _packages, _setuptools, _nni, _node, _torch, _tensorboard, _folders, _ports,
        _proxy, _shared_memory, _extras,
    ]  # fmt: skip
    found = []
    for check in checks:
        try:
            found += list(check())
        except Exception as error:  # a check that breaks must not hide the others
            what = check.__name__.strip("_")
            found.append(Finding(what, "warning", f"could not be looked at: {error!r}"))
    return found


def blocks(found: list[Finding]) -> bool:
    """Tell whether something was found that must be mended first."""
    return any(one.state == "error" for one in found)


# -- Python and packages --------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    version, machine = platform.python_version(), platform.machine()
    if not (3, 10) <= sys.version_info[:2] < (3, 13):
        yield Finding(
            "Python", "error", f"{version}: NNI 3.0 and its pins need 3.10 to 3.12",
            "python3.12 -m venv .venv && . .venv/bin/activate && pip install nni-gconv",
        )  # fmt: skip
    elif sys.platform != "linux" or machine not in ("x86_64", "AMD64"):
        yield Finding(
            "Python", "warning",
            f"{version} on {sys.platform} {machine}: tested on Linux x86-64 only, and NNI has no "
            "wheel for ARM: pruning works, experiments do not",
            "run experiments on a Linux x86-64 machine or container",
        )  # fmt: skip
    else:
        yield Finding("Python", "ok", f"{version}, {sys.prefix}")


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what nni-gconv, NNI and torch ask for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wrong = 0
    for name in ("nni-gconv", "nni", "torch", "torchvision", "tensorboard", "scikit-learn"):
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in asked:
            one = Requirement(text)
            plain = canonicalize_name(one.name)
            # CUDA's own packages are not used by a build for CPUs; importing torch tells.
            if plain.startswith(("nvidia-", "cuda-", "triton")) or (
                one.marker and not one.marker.evaluate({"extra": ""})
            ):
                continue
            pin = f"'{one.name}{one.specifier}'" if one.specifier else one.name
            try:
                have = metadata.version(plain)
            except metadata.PackageNotFoundError:
                wrong += 1
                yield Finding(
                    plain, "error", f"not installed, {name} needs it", f"pip install {pin}"
                )
                continue
            if not one.specifier.contains(have, prereleases=True):
                wrong += 1
                yield Finding(
                    plain, "error", f"{have}, but {name} {_version(name)} needs {one.specifier}",
                    f"pip install {pin}",
                )  # fmt: skip
    if not wrong:
        shown = ("nni-gconv", "nni", "torch", "torchvision", "typeguard", "filelock")
        yield Finding("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in shown))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _setuptools() -> Iterator[Finding]:
    if importlib.util.find_spec("pkg_resources") is None:
        yield Finding(
            "setuptools", "error",
            f"{_version('setuptools')} has no pkg_resources, which nnictl imports",
            "pip install 'setuptools>=77.0.3,<81'",
        )  # fmt: skip
    else:
        yield Finding("setuptools", "ok", f"{_version('setuptools')}, with pkg_resources")


def _nni() -> Iterator[Finding]:
    missing = [name for name in ("nni", "nni_node") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("NNI", "error", f"no {' and no '.join(missing)}", "pip install nni==3.0")
        return
    said = _load("from nni.tools.nnictl.nnictl import parse_args; import nni.compression")
    if isinstance(said, str):
        yield Finding(
            "NNI", "error", f"nnictl cannot start: {said}",
            "pip install --force-reinstall nni==3.0 'setuptools>=77.0.3,<81' 'typeguard<4.1.3'",
        )  # fmt: skip
    else:
        yield Finding("NNI", "ok", f"{_version('nni')}, nnictl starts")
    if shutil.which("nnictl") is None:
        yield Finding(
            "nnictl", "warning", "not on PATH (nni-gconv create works without)",
            f"export PATH={Path(sys.executable).parent}:$PATH",
        )  # fmt: skip


def _node() -> Iterator[Finding]:
    spec = importlib.util.find_spec("nni_node")
    if spec is None or not spec.submodule_search_locations:
        return
    node = Path(next(iter(spec.submodule_search_locations))) / "node"
    said = _run([str(node), "--version"])
    if isinstance(said, subprocess.CompletedProcess) and said.returncode == 0:
        yield Finding("node", "ok", f"NNI's own {said.stdout.strip()} runs")
        return
    words = said if isinstance(said, str) else _last(said.stderr or said.stdout)
    remedy = "pip install --force-reinstall --no-deps nni==3.0"
    if "GLIBC" in words or "GLIBCXX" in words:
        libc = " ".join(platform.libc_ver()) or "another C library"
        words += f" (this system has {libc})"
        remedy = "use a system with glibc 2.28 or newer: Debian 10, Ubuntu 20.04, RHEL 8"
    yield Finding("node", "error", f"NNI's manager cannot run: {words}", remedy)


# -- torch and the GPU ----------------------------------------------------------------------------

_TORCH = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda}
found["hip"] = getattr(torch.version, "hip", None)
found["available"] = torch.cuda.is_available()
found["gpus"] = torch.cuda.device_count()
import torchvision
found["torchvision"] = torchvision.__version__
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(json.dumps(found))
"""

_NVML = """
import json, pynvml
pynvml.nvmlInit()
text = lambda value: value.decode() if isinstance(value, bytes) else value
count = pynvml.nvmlDeviceGetCount()
names = [text(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)))
         for i in range(count)]
print(json.dumps({"driver": text(pynvml.nvmlSystemGetDriverVersion()),
                  "cuda": pynvml.nvmlSystemGetCudaDriverVersion(), "names": names}))
"""


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "error", "not installed", "pip install torch torchvision")
        return
    found = _load(_TORCH)
    if isinstance(found, str):
        pair = f"torch {_version('torch')} and torchvision {_version('torchvision')}"
        yield Finding(
            "torch", "error", f"{pair} do not load together: {found}",
            "pip install --upgrade --force-reinstall torch torchvision",
        )  # fmt: skip
        return
    pair = f"torch {found['torch']}, torchvision {found['torchvision']}"
    yield Finding("torch", "ok", f"{pair} load together")
    yield _gpu(found, _load(_NVML))


def _gpu(torch: dict[str, Any], driver: dict[str, Any] | str) -> Finding:
    """Compare the driver with the build of torch."""
    if isinstance(driver, str) or not driver["names"]:
        if torch["available"]:
            kind = f"ROCm {torch['hip']}" if torch["hip"] else f"CUDA {torch['cuda']}"
            return Finding("GPU", "ok", f"{torch['gpus']} GPUs, {kind}")
        why = "no NVIDIA driver" if isinstance(driver, str) else "no NVIDIA GPU"
        return Finding("GPU", "note", f"{why}: training runs on the CPU")
    names = ", ".join(sorted(set(driver["names"])))
    seen = f"{len(driver['names'])} x {names}, driver {driver['driver']}"
    newest = f"{driver['cuda'] // 1000}.{driver['cuda'] % 1000 // 10}"
    if torch["cuda"] is None:
        return Finding(
            "GPU", "warning", f"{seen}, but torch {torch['torch']} is built for CPUs only",
            "install torch for CUDA " + newest + " or older, see https://pytorch.org/get-started",
        )  # fmt: skip
    if torch["available"]:
        return Finding("GPU", "ok", f"{seen}, CUDA {torch['cuda']} of torch")
    if int(torch["cuda"].split(".")[0]) > driver["cuda"] // 1000:
        return Finding(
            "GPU", "warning",
            f"{seen}: it knows CUDA up to {newest}, torch is built for {torch['cuda']}",
            f"update the driver, or install torch for CUDA {newest} or older",
        )  # fmt: skip
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
    return Finding("GPU", "warning", f"{seen}, but torch cannot use it{why}", "nvidia-smi")


def _tensorboard() -> Iterator[Finding]:
    said = _load("import tensorboard.main")
    if isinstance(said, str):
        yield Finding("TensorBoard", "error", said, "pip install 'tensorboard>=2.14'")
    elif shutil.which("tensorboard") is None:
        yield Finding(
            "TensorBoard", "warning",
            "not on PATH: the button of the web UI works with nni-gconv create, not with nnictl",
            f"export PATH={Path(sys.executable).parent}:$PATH",
        )  # fmt: skip
    else:
        yield Finding("TensorBoard", "ok", f"{_version('tensorboard')}, on PATH")


# -- the machine ----------------------------------------------------------------------------------


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
                "nnictl create --port 8081 --config EXPERIMENT.yml",
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


def _extras() -> Iterator[Finding]:
    missing = [n for n in ("onnx", "onnxruntime", "onnxscript") if _version(n)[0] == "("]
    if missing:
        yield Finding(
            "extras", "note", f"no {', '.join(missing)}: ONNX cannot be written",
            "pip install 'nni-gconv[export]'",
        )  # fmt: skip
    else:
        yield Finding("extras", "ok", f"onnx {_version('onnx')} can be written and checked")


# -- processes ------------------------------------------------------------------------------------


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {_SECONDS} s"
    except OSError as error:
        return str(error)


def _load(code: str) -> dict[str, Any] | str:
    """Run code in a Python of its own; return what it printed as JSON, or why it failed."""
    said = _run([sys.executable, "-W", "ignore", "-c", code])
    if isinstance(said, str):
        return said
    if said.returncode != 0:
        return _last(said.stderr) or f"exit code {said.returncode}"
    try:
        found = json.loads(said.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = {}
    return found if isinstance(found, dict) else {}


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:300] if lines else ""


if __name__ == "__main__":
    results = examine()
    sys.stdout.write("".join(f"{result.line()}\n" for result in results))
    sys.exit(2 if blocks(results) else 0)
