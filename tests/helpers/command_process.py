"""Be ``nni-gconv ARGUMENTS`` in a process of its own: command_process.py READY ARGUMENTS..."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from nni_gconv.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path(sys.argv[1]).touch()
    main(sys.argv[2:])
