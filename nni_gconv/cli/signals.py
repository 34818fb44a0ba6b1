"""Ctrl-C and SIGTERM: a word on how to go on, and no half a file left behind."""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from nni_gconv.cli.output import note

#: Before the command that goes on with work that keeps what is finished.
KEPT = "what was finished is kept; go on with: "


Command = TypeVar("Command", bound=Callable[..., object])


class Terminated(BaseException):
    """SIGTERM came: from a batch system, ``timeout`` or a machine that shuts down."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def interruptible(words: str) -> Iterator[None]:
    """Say `words` on standard error when Ctrl-C or SIGTERM ends the block.

    Parameters
    ----------
    words : str
        One line: how to go on. Within such a block, an outer one says nothing more.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        yield
    except (KeyboardInterrupt, Terminated) as end:
        if words and not getattr(end, "told", False):
            how = "interrupted" if isinstance(end, KeyboardInterrupt) else "terminated"
            note(f"{how}; {words}")
        end.told = True  # type: ignore[union-attr]
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def interruptible_command(command: Command) -> Command:
    """Let a command say how to go on wherever it is interrupted and nothing inside has said it."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> object:
        with interruptible(f"run it again: nni-gconv {shlex.join(sys.argv[1:])}"):
            return command(*arguments, **options)

    return run  # type: ignore[return-value]
