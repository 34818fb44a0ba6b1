"""One thread per process: the order of sums depends on their number, and tests share the cores."""

import os
import tempfile
from pathlib import Path

import pytest

# Before torch is imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

# Else matplotlib looks at every font of the machine anew in each home that a test makes.
FONTS = Path(tempfile.gettempdir()) / f"nni-gconv-matplotlib-{os.getuid()}"
os.environ.setdefault("MPLCONFIGDIR", str(FONTS))

#: Folders whose tests wait for managers, servers and browsers.
WAITING = ("experiment", "webui")


def pytest_xdist_auto_num_workers():
    """Two more than there are cores: some of the tests wait."""
    return (os.cpu_count() or 1) + 2


def pytest_collection_modifyitems(items):
    """Begin with the files that wait, each followed by one that computes meanwhile."""
    place: dict[tuple[bool, Path], int] = {}
    for item in items:
        waits = item.path.parent.name in WAITING
        count = sum(kind == waits for kind, _ in place)
        place.setdefault((waits, item.path), count)
    items.sort(key=lambda i: place[i.path.parent.name in WAITING, i.path])


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
