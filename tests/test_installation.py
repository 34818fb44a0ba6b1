"""``nni-gconv doctor``: a sound installation, and one that is broken in every way at once."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from nni_gconv.installation import machine
from nni_gconv.installation.machine import managers
from nni_gconv.installation.software import compare_gpu

ROOT = Path(__file__).parents[1]

PYNVML = """
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetName(handle): return b"Test GPU"
def nvmlSystemGetDriverVersion(): return "470.82"
def nvmlSystemGetCudaDriverVersion(): return 11040
"""
NODE = """#!/bin/sh
echo "node: /lib/libc.so.6: version \\`GLIBC_2.28' not found (required by node)" >&2
exit 1
"""


def doctor(python, tmp_path, **env):
    given = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **env}
    command = [str(python), "-m", "nni_gconv", "doctor", "--json"]
    done = subprocess.run(
        command, env=given, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path
    )
    assert done.stderr == "" or done.returncode == 0, done.stderr
    return done.returncode, {one["what"]: one for one in json.loads(done.stdout)}


@pytest.fixture
def broken(tmp_path):
    """A virtual environment whose packages are links to ours, but for those that are broken."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    hidden = (
        "setuptools", "pkg_resources", "_distutils_hack", "typeguard-", "torchvision",
        "nni_node", "pynvml", "tensorboard", "onnxscript",
    )  # fmt: skip
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(hidden) and entry.suffix != ".pth":
                (site / entry.name).symlink_to(entry)
    for name, version in (("setuptools", "82.0"), ("typeguard", "4.4.1"), ("torchvision", "0.9")):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site / "torchvision").mkdir()
    (site / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (site / "pynvml.py").write_text(PYNVML)
    (site / "nni_node").mkdir()
    (site / "nni_node" / "__init__.py").touch()
    (site / "nni_node" / "node").write_text(NODE)
    (site / "nni_node" / "node").chmod(0o755)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_what_is_broken_is_named_with_how_to_fix_it(broken, tmp_path):
    # Nobody, root included, can make files in /proc.
    env = {"http_proxy": "http://192.0.2.1:3128", "NO_PROXY": "", "no_proxy": "", "HOME": "/proc"}
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # then somebody else has it
            server.bind(("127.0.0.1", 8080))
            server.listen()
        code, found = doctor(broken, tmp_path, **env)
    assert code == 2
    errors = {what for what, one in found.items() if one["state"] == "error"}
    assert {"setuptools", "typeguard", "NNI", "node", "torch", "TensorBoard"} <= errors
    assert "experiments" in errors
    assert found["setuptools"]["remedy"] == "pip install 'setuptools>=77.0.3,<81'"
    assert "4.4.1, but nni 3.0 needs <4.1.3" in found["typeguard"]["text"]
    assert found["typeguard"]["remedy"] == "pip install 'typeguard<4.1.3,>=3.0.0'"
    assert "pkg_resources" in found["NNI"]["text"]
    assert "GLIBC_2.28" in found["node"]["text"]
    assert "glibc 2.28 or newer" in found["node"]["remedy"]
    assert "torchvision::nms does not exist" in found["torch"]["text"]
    assert "torchvision 0.9" in found["torch"]["text"]
    assert found["port 8080"]["state"] == "note"
    assert found["proxy"]["remedy"] == "export NO_PROXY=localhost,127.0.0.1"
    assert "onnxscript" in found["extras"]["text"]
    for one in found.values():
        assert "\n" not in one["text"] + one["remedy"]
        assert one["remedy"] or one["state"] in ("ok", "note")


@pytest.mark.slow
def test_this_installation_is_sound(tmp_path):
    code, found = doctor(sys.executable, tmp_path)
    assert code == 0, found
    assert {one["state"] for one in found.values()} <= {"ok", "note", "warning"}
    assert found["node"]["text"].startswith("NNI's own v")
    assert found["torch"]["text"].endswith("load together")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs two cores")
def test_fewer_processors_than_the_machine_has_are_told(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # counts as a container's limit does
    assert list(machine._processors()) == []  # the environment of tests says how many threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    (found,) = machine._processors()
    assert found.state == "warning"
    assert found.text.startswith("1 of ")
    assert "OMP_NUM_THREADS=1" in found.remedy
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    assert list(machine._processors()) == []


@pytest.mark.parametrize(
    ("torch", "driver", "state", "words"),
    [
        ({"cuda": None}, "no library", "note", "runs on the CPU"),
        ({"cuda": None}, {"names": ["A"]}, "warning", "built for CPUs only"),
        ({"cuda": "13.2"}, {"names": ["A"]}, "warning", "up to 12.4, torch is built for 13.2"),
        ({"cuda": "12.1"}, {"names": ["A"]}, "warning", "torch cannot use it"),
        ({"cuda": "12.1", "available": True, "gpus": 2}, {"names": ["A", "A"]}, "ok", "2 x A"),
        ({"cuda": "12.1", "available": True, "gpus": 1}, "no library", "ok", "1 GPUs"),
    ],
)
def test_driver_and_torch_are_compared(torch, driver, state, words):
    torch = {"torch": "2.6", "hip": None, "available": False, "gpus": 0, **torch}
    if isinstance(driver, dict):
        driver = {"driver": "550.1", "cuda": 12040, **driver}
    found = compare_gpu(torch, driver)
    assert (found.state, words in found.text) == (state, True), found
    assert found.remedy or state != "warning"


LISTENING = """
import socket, sys
server = socket.create_server((sys.argv[2], 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("address", "told"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_managers_that_are_open_to_the_network_are_named(address, told):
    """As `nnictl create` leaves one, and as `nni-gconv create` does."""
    command = [sys.executable, "-c", LISTENING, "/somewhere/nni_node/main.js", address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as manager:
        port = manager.stdout.readline().strip()
        (found,) = managers()
        manager.stdin.close()
    assert (found.what, found.state) == ("nnictl create", "warning")
    assert "without login" in found.text
    assert (port in found.text) == told
    assert found.remedy == "nni-gconv create EXPERIMENT.yml"
