"""torchrun without its tracebacks: the processes that it starts say themselves what was wrong.

python -m nni_gconv.compat.torchrun --standalone --nproc_per_node 2 -m nni_gconv run recipe.yml
"""

from __future__ import annotations

import logging
import os
import sys


def main() -> int:
    """Run torchrun on this process's arguments, and return the exit code of what it started."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable(logging.ERROR)  # of this process alone; what stops it is raised
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own choice, which it would announce
    try:
        torchrun()
    except SignalException as ended:
        return 128 + int(ended.sigval)
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main())
