"""Be a worker of pytest, forked from a process that has loaded torch and NNI.

pytest-xdist starts it as ``python`` with the options ``-u -c CODE``; see ``pytest_configure``.
"""

import os
import signal
import sys
from pathlib import Path

from processes import warm_socket
from warm.asking import Asked

asked = Asked(warm_socket("nni"), sys.argv[-2:], str(Path.cwd()), dict(os.environ), [0, 1, 2])
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the session ends its workers itself
sys.exit(asked.wait())
