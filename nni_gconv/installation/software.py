"""Python, packages, NNI and its node, torch and the GPU."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from nni_gconv import compat
from nni_gconv.installation.finding import Finding, last, load, run, version


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
                    plain, "error", f"{have}, but {name} {version(name)} needs {one.specifier}",
                    f"pip install {pin}",
                )  # fmt: skip
    if not wrong:
        shown = ("nni-gconv", "nni", "torch", "torchvision", "typeguard", "filelock")
        yield Finding("packages", "ok", ", ".join(f"{name} {version(name)}" for name in shown))


def _setuptools() -> Iterator[Finding]:
    if importlib.util.find_spec("pkg_resources") is None:
        yield Finding(
            "setuptools", "error",
            f"{version('setuptools')} has no pkg_resources, which nnictl imports",
            "pip install 'setuptools>=77.0.3,<81'",
        )  # fmt: skip
    else:
        yield Finding("setuptools", "ok", f"{version('setuptools')}, with pkg_resources")


def _nni() -> Iterator[Finding]:
    missing = [name for name in ("nni", "nni_node") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("NNI", "error", f"no {' and no '.join(missing)}", "pip install nni==3.0")
        return
    said = load("from nni.tools.nnictl.nnictl import parse_args; import nni.compression")
    if isinstance(said, str):
        yield Finding(
            "NNI", "error", f"nnictl cannot start: {said}",
            "pip install --force-reinstall nni==3.0 'setuptools>=77.0.3,<81' 'typeguard<4.1.3'",
        )  # fmt: skip
    else:
        yield Finding("NNI", "ok", f"{version('nni')}, nnictl starts")
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
    said = run([str(node), "--version"])
    if isinstance(said, subprocess.CompletedProcess) and said.returncode == 0:
        yield Finding("node", "ok", f"NNI's own {said.stdout.strip()} runs")
        return
    words = said if isinstance(said, str) else last(said.stderr or said.stdout)
    remedy = "pip install --force-reinstall --no-deps nni==3.0"
    if "GLIBC" in words or "GLIBCXX" in words:
        libc = " ".join(platform.libc_ver()) or "another C library"
        words += f" (this system has {libc})"
        remedy = "use a system with glibc 2.28 or newer: Debian 10, Ubuntu 20.04, RHEL 8"
    yield Finding("node", "error", f"NNI's manager cannot run: {words}", remedy)


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
    found = load(_TORCH)
    if isinstance(found, str):
        pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
        yield Finding(
            "torch", "error", f"{pair} do not load together: {found}",
            "pip install --upgrade --force-reinstall torch torchvision",
        )  # fmt: skip
        return
    pair = f"torch {found['torch']}, torchvision {found['torchvision']}"
    yield Finding("torch", "ok", f"{pair} load together")
    yield compare_gpu(found, load(_NVML))


def compare_gpu(torch: dict[str, Any], driver: dict[str, Any] | str) -> Finding:
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
    said = load("import tensorboard.main")
    if isinstance(said, str):
        yield Finding("TensorBoard", "error", said, "pip install 'tensorboard>=2.14'")
    elif shutil.which("tensorboard") is None:
        yield Finding(
            "TensorBoard", "warning",
            "not on PATH: the button of the web UI works with nni-gconv create, not with nnictl",
            f"export PATH={Path(sys.executable).parent}:$PATH",
        )  # fmt: skip
    else:
        yield Finding("TensorBoard", "ok", f"{version('tensorboard')}, on PATH")


def _extras() -> Iterator[Finding]:
    missing = compat.missing_for_onnx()
    if missing:
        yield Finding(
            "extras", "note", f"ONNX cannot be written, which needs {', '.join(missing)}",
            "pip install 'nni-gconv[export]'",
        )  # fmt: skip
    else:
        yield Finding("extras", "ok", f"onnx {version('onnx')} can be written and checked")


SOFTWARE = (_python, _packages, _setuptools, _nni, _node, _torch, _tensorboard, _extras)
