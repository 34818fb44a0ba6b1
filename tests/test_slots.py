"""GPU slots with a driver of our own that reports as many GPUs as a test wants."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.slots import gpu_slots, gpus_wanted, machine_slots

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests/experiment/fake_nvml"

HOLD = """
import sys
from nni_gconv.slots import gpu_slots
with gpu_slots(int(sys.argv[1])) as gpus:
    print(",".join(gpus), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """A function that gives this machine so many GPUs; None is a machine without a driver."""
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "NNI_GCONV_GPUS", "NNI_GCONV_SLOTS_TAKEN", "FAKE_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NNI_GCONV_SLOT_FOLDER", str(tmp_path / "slots"))

    def give(count, visible=None):
        if count is not None:
            monkeypatch.setenv("FAKE_GPUS", str(count))
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    yield give
    sys.modules.pop("pynvml", None)


def hold(count=1):
    """Start a process that takes GPUs and keeps them until it is told to end."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(count)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FAKE), str(ROOT)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("visible", "names", "locks"),
    [
        (None, ("0", "1", "2", "3"), ("gpu-0", "gpu-1", "gpu-2", "gpu-3")),
        ("3,1", ("3", "1"), ("gpu-3", "gpu-1")),
        ("GPU-00000002", ("GPU-00000002",), ("gpu-2",)),
        ("1,7,2", ("1",), ("gpu-1",)),  # CUDA stops at the first that is not there
        ("1,1,2", ("1",), ("gpu-1",)),
        ("GPU-0", (), ()),  # the beginning of more than one
        ("MIG-a/1/0,MIG-a/2/0", ("MIG-a/1/0", "MIG-a/2/0"), ("MIG-a-1-0", "MIG-a-2-0")),
        ("", (), ()),
        ("-1", (), ()),
    ],
)
def test_slots_are_those_the_user_leaves_visible(gpus, visible, names, locks):
    gpus(4, visible)
    slots = machine_slots()
    assert (slots.names, slots.locks) == (names, locks)
    assert bool(slots.reason) == (not names)


def test_a_holder_sees_its_gpu_only_and_leaves_the_environment_as_it_was(gpus):
    gpus(2, "1,0")
    said = []
    with gpu_slots(tell=said.append) as mine:
        assert mine == ("1",)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        with gpu_slots(tell=said.append) as inner:  # what a holder calls takes no second one
            assert inner == ()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert "CUDA_DEVICE_ORDER" not in os.environ
    assert len(said) == 1
    assert "GPU 1 of 1, 0" in said[0]


def test_two_processes_never_hold_one_gpu_and_a_killed_one_holds_none(gpus):
    gpus(2)
    holders = [hold(), hold()]
    try:
        assert {holder.stdout.readline().strip() for holder in holders} == {"0", "1"}
        waiting = hold()
        holders.append(waiting)
        assert "waiting for 1 free of 2 GPUs" in waiting.stderr.readline()
        holders[1].send_signal(signal.SIGKILL)
        holders[1].wait()
        assert waiting.stdout.readline().strip() in {"0", "1"}
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_several_gpus_are_taken_at_once_or_not_at_all(gpus):
    gpus(3)
    one, both, both_too = holders = [hold(1), hold(2), hold(2)]
    try:
        one.stdin.write("\n")
        one.stdin.flush()
        # The two that want two of three follow each other: neither keeps one while it waits.
        first = None
        deadline = time.monotonic() + 60
        while first is None and time.monotonic() < deadline:
            for holder in (both, both_too):
                os.set_blocking(holder.stdout.fileno(), False)
                line = holder.stdout.readline()
                if line:
                    first, taken = holder, line.strip()
            time.sleep(0.05)
        second = both_too if first is both else both
        assert len(taken.split(",")) == 2
        first.stdin.write("\n")
        first.stdin.flush()
        os.set_blocking(second.stdout.fileno(), True)
        assert len(second.stdout.readline().strip().split(",")) == 2
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def test_without_a_gpu_it_says_so_at_once_and_cuda_is_an_error(gpus):
    gpus(None)
    said = []
    with gpu_slots(tell=said.append) as mine:
        assert mine == ()
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert len(said) == 1
    assert "no NVIDIA driver (NVML Shared Library Not Found)" in said[0]
    assert "running on the CPU" in said[0]
    with (
        pytest.raises(ConfigError, match=r"device: cuda was asked for.*NVML"),
        gpu_slots(required=True),
    ):
        pass


def test_more_gpus_than_there_are_is_an_error_with_the_number(gpus):
    gpus(2)
    with pytest.raises(ConfigError, match=r"gpus: 3 asked for, but .* has 2"), gpu_slots(3):
        pass


def test_the_variable_stands_before_the_recipe(gpus, monkeypatch):
    gpus(2)
    assert gpus_wanted(2) == 2
    monkeypatch.setenv("NNI_GCONV_GPUS", "0")
    assert gpus_wanted(2) == 0
    monkeypatch.setenv("NNI_GCONV_GPUS", "many")
    with pytest.raises(ConfigError, match="NNI_GCONV_GPUS='many'"):
        gpus_wanted()
