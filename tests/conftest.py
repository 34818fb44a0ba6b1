"""One thread per process: the order of sums depends on their number, and tests share the cores."""

import os
import tempfile
from pathlib import Path

# Before torch is imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

# Else matplotlib looks at every font of the machine anew in each home that a test makes.
FONTS = Path(tempfile.gettempdir()) / f"nni-gconv-matplotlib-{os.getuid()}"
os.environ.setdefault("MPLCONFIGDIR", str(FONTS))

#: Folders whose tests wait for managers, servers and browsers; at the end nobody would be left to
#: compute meanwhile.
WAITING = ("experiment", "webui")


def pytest_collection_modifyitems(items):
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.parent.name not in WAITING)
