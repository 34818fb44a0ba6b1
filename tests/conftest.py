"""One thread per process: the order of sums depends on their number, and tests share the cores."""

import gc
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

# Before torch is imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

# Else matplotlib looks at every font of the machine anew in each home that a test makes.
FONTS = Path(tempfile.gettempdir()) / f"nni-gconv-matplotlib-{os.getuid()}"
os.environ.setdefault("MPLCONFIGDIR", str(FONTS))

# Some thousand tests' objects stay: looking at all of them so often takes a twentieth of the time.
gc.set_threshold(10_000, 10, 10)

#: Folders whose tests wait for managers, servers and browsers.
WAITING = ("experiment", "webui")


def pytest_configure(config):
    """Let workers be forked from one process that has loaded what all of them need."""
    if "WARM_FOLDER" not in os.environ:
        os.environ["WARM_FOLDER"] = tempfile.mkdtemp(prefix="nni-gconv-warm-")
        os.environ["WARM_OWNER"] = str(os.getpid())
    worker = shlex.join([sys.executable, str(Path(__file__).parent / "helpers/warm_worker.py")])
    given = config.getoption("tx", [])
    config.option.tx = [f"popen//python={worker}" if tx == "popen" else tx for tx in given]
    if not given or hasattr(config, "workerinput"):  # tests run in this process
        seed_quickly()


def seed_quickly():
    """Else each torch.manual_seed keeps the whole stack for GPUs that never begin: milliseconds."""
    import torch

    if not torch.cuda.is_available():
        for kind in (torch.cuda, torch.xpu, torch.mtia):
            kind.manual_seed_all = lambda _: None


def pytest_unconfigure():
    if os.environ.get("WARM_OWNER") == str(os.getpid()):
        # With it the processes end that it serves.
        shutil.rmtree(os.environ["WARM_FOLDER"], ignore_errors=True)


def pytest_xdist_auto_num_workers():
    """Three more than there are cores: some of the tests wait."""
    return (os.cpu_count() or 1) + 3


def pytest_collection_modifyitems(items):
    """Let some files that compute follow each that waits, so that all the time one of each runs."""
    files = Counter(item.path for item in items)
    waiting = [file for file in files if file.parent.name in WAITING]
    # Those of many tests first: what comes last is soon done, so no worker is waited for.
    computing = [file for file, _ in files.most_common() if file.parent.name not in WAITING]
    # The last that waits shall not be the last of all.
    each = max(1, 2 * len(computing) // (3 * max(1, len(waiting))))
    place = {file: (each * n, 0) for n, file in enumerate(waiting)}
    place |= {file: (n, 1) for n, file in enumerate(computing)}
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Let no test's weights depend on what ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Nor on whether it is the first that asks for what several share."""
    import torch

    if fixturedef.scope == "function":
        return (yield)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (yield)


@pytest.fixture
def clock(monkeypatch):
    """Stand in for a budget's clock: time is what the MACs say, with a part that never goes."""
    from nni_gconv.profiling import count
    from nni_gconv.pruning.selection import latency

    calls = []

    def measure(dense, small, example):
        calls.append((dense, small, example))
        return 0.1 + 0.9 * count(small, example).macs / count(dense, example).macs

    monkeypatch.setattr(latency, "measured_ratio", measure)
    return calls


@pytest.fixture(scope="session")
def warm():
    """A function that lets an environment's commands be forked from a process that has torch.

    Loading it, or what NNI loads, takes seconds of each. All else is real: commands start NNI's
    manager, which starts its dispatcher and trials, is told how they ended and can kill them. A
    `script` that is started as ``python SCRIPT`` is forked, too. What is forked is of another
    session and process group than what asks for it: not for tests of these.
    """
    from processes import warm_socket

    helpers = Path(__file__).parent / "helpers"

    def warmed(env, script=""):
        path = os.pathsep.join(filter(None, [str(helpers / "warm"), env.get("PYTHONPATH")]))
        place = warm_socket("plain")
        return {**env, "PYTHONPATH": path, "WARM_SOCKET": place, "WARM_SCRIPT": str(script)}

    return warmed
