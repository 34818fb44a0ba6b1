"""What a person sees of work in stages: a bar on a terminal, a line once a stage is done.

The work itself only says how far it is, with :func:`advance`; whoever called it decides whether
that is shown. Off a terminal a stage that lasts says so once a minute.

>>> with Stages("shrink", enabled=False).stage("trace") as stage:
...     advance(1, 2, "layers")
...     stage.result = "2 layers"
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

#: Seconds between two lines of one stage where no terminal shows a bar.
_APART = 60.0

_current: ContextVar[Stage | None] = ContextVar("stage", default=None)


def advance(done: int, every: int, what: str = "") -> None:
    """Say that so many of so many are done, to the stage under way if there is one.

    Parameters
    ----------
    done, every : int
        How many are done, of how many.
    what : str, optional
        Of what: images, layers.
    """
    stage = _current.get()
    if stage is not None:
        stage.advance(done, every, what)


class Stage:
    """A stage under way; `result` is what its line says in the end."""

    def __init__(self, name: str, bar: Progress | None, spoken: bool) -> None:
        self.name, self.result = name, ""
        self.begun = self._last = time.monotonic()
        self._bar, self._spoken = bar, spoken
        self._task = None if bar is None else bar.add_task(name, total=None, count="")

    def advance(self, done: int, every: int, what: str) -> None:
        """Show how far it is."""
        count = f"{done:,} of {every:,} {what}".rstrip()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=every, count=count)
        elif self._spoken and time.monotonic() - self._last >= _APART:
            self._last = time.monotonic()
            say(f"{self.name}: {count}")


def say(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - meant for a person


class Stages:
    """Work in stages, on standard error.

    Parameters
    ----------
    name : str
        Of the work, in front of each line.
    enabled : bool, optional
        Default: on a terminal and in notebooks.
    """

    def __init__(self, name: str, enabled: bool | None = None) -> None:
        seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.name, self.enabled = name, seen if enabled is None else enabled
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, bar: bool = True) -> Iterator[Stage]:
        """Time a stage, and say in a line what it came to.

        Parameters
        ----------
        name : str
            What is done.
        bar : bool, default True
            Whether a terminal shows a bar meanwhile; not where what is done shows its own.
        """
        shown = _bar() if self.enabled and bar and sys.stderr.isatty() else None
        stage = Stage(f"{self.name}: {name}", shown, self.enabled)
        token = _current.set(stage)
        try:
            with shown or nullcontext():
                yield stage
        finally:
            _current.reset(token)
        self.seconds[name] = time.monotonic() - stage.begun
        self.say(f"{name:<11} {stage.result}".rstrip() + f"  ({self.seconds[name]:.1f} s)")

    def say(self, text: str) -> None:
        """Write a line, if lines are wanted."""
        if self.enabled:
            say(f"{self.name}: {text}")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
