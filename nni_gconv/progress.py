"""What a person sees of work in stages: a bar on a terminal, a line once a stage is done.

The work itself only says how far it is, with :func:`advance`; whoever called it decides whether
that is shown. Off a terminal a stage that lasts says so once a minute.

>>> with Stages("shrink", enabled=False) as stages, stages.stage("trace") as stage:
...     advance(1, 2, "layers")
...     stage.result = "2 layers"
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
            print(f"{self.name}: {count}", file=sys.stderr, flush=True)  # noqa: T201

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)


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
        self._bar: Progress | None = None
        if self.enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
            )
            self._bar = Progress(
                *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
            )

    def __enter__(self) -> Stages:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage, and say in a line what it came to.

        Parameters
        ----------
        name : str
            What is done.
        """
        stage = Stage(f"{self.name}: {name}", self._bar, self.enabled)
        token = _current.set(stage)
        try:
            yield stage
        finally:
            _current.reset(token)
            stage.end()
        self.seconds[name] = time.monotonic() - stage.begun
        self.say(f"{name:<11} {stage.result}".rstrip() + f"  ({self.seconds[name]:.1f} s)")

    def say(self, text: str) -> None:
        """Write a line."""
        if not self.enabled:
            return
        line = f"{self.name}: {text}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - meant for a person
