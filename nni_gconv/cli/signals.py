"""Ctrl-C and SIGTERM: a word on how to go on, and no half a file left behind."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from nni_gconv.cli.output import note


class Terminated(BaseException):
    """SIGTERM came: from a batch system, ``timeout`` or a machine that shuts down."""


@contextlib.contextmanager
def interruptible(words: str) -> Iterator[None]:
    """Say `words` on standard error when Ctrl-C or SIGTERM ends the block, once.

    Parameters
    ----------
    words : str
        One line: how to go on.
    """

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        yield
    except (KeyboardInterrupt, Terminated) as end:
        if words:
            note(
                f"{'interrupted' if isinstance(end, KeyboardInterrupt) else 'terminated'}; {words}"
            )
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
