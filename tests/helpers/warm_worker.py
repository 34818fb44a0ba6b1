"""Be a worker of pytest, forked from a process that has loaded torch and NNI.

pytest-xdist starts it as ``python`` with the options ``-u -c CODE``; see ``pytest_configure``.
"""

import signal
import sys

from processes import warm_socket
from warm.asking import stand_for

place = warm_socket("nni")  # before: what it starts would ignore the signal, too, and all it forks
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the session ends its workers itself
stand_for(place, sys.argv[-2:])
