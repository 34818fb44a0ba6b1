"""NNI for the trials of tests: it loads without pandas and scipy, of which a trial has no use.

Import it before ``nni``; a trial that ends at once otherwise spends all its time there.
"""

import sys
from types import ModuleType

sys.modules["pandas"] = None  # json_tricks does without
sys.modules["scipy"] = ModuleType("scipy")
stats = sys.modules["scipy.stats"] = ModuleType("scipy.stats")
# What NNI's search spaces in code draw from.
stats.norm = stats.lognorm = stats.uniform = stats.loguniform = None
