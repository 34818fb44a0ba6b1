"""One thread per process: the order of sums depends on their number, and tests share the cores."""

import os

# Before torch is imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

#: Folders whose tests wait for managers, servers and browsers; at the end nobody would be left to
#: compute meanwhile.
WAITING = ("experiment", "webui")


def pytest_collection_modifyitems(items):
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.parent.name not in WAITING)
