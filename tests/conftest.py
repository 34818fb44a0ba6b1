"""One thread per process: the order of sums depends on their number, and tests share the cores."""

import os

# Before torch is imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
