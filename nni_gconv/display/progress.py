"""What a person sees of work in stages: a bar on a terminal, a line once a stage is done.

The work itself only says how far it is, with :func:`counting`; the stage under way shows it. Off a
terminal a stage that lasts says so once a minute.

>>> with Stages("shrink", enabled=False).stage("trace") as stage:
...     with counting("layers", 2) as done:
...         done()
...     stage.result = "2 layers"
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import count

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

#: Seconds between two lines of one stage where no terminal shows a bar.
_APART = 60.0
#: Seconds between two notes for those who look from elsewhere.
_NOTES_APART = 5.0

#: Is told how far a stage is: "prune, 512 of 1,024 images".
Note = Callable[[str], None]

_current: ContextVar[Stage | None] = ContextVar("stage", default=None)


@contextmanager
def counting(what: str, total: int, *, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Give a function to call after each of `total` pieces of work.

    The bar of the stage under way moves; where there is none a terminal shows one for this work,
    and anything else a line a minute.

    Parameters
    ----------
    what : str
        What is counted: images, layers.
    total : int
        How many there are.
    enabled : bool, default True
        False shows nothing.

    Examples
    --------
    >>> with counting("layers", 2) as done:
    ...     done()
    """
    numbers = count(1)
    with advancing(what, enabled=enabled) as advance:
        yield lambda: advance(next(numbers), total)


@contextmanager
def advancing(
    what: str, *, enabled: bool = True, last_line: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes how many pieces of work are done, and of how many.

    As :func:`counting`, for work that says itself how much it is.

    Parameters
    ----------
    what : str
        What is counted: points, partitions.
    enabled : bool, default True
        False shows nothing.
    last_line : bool, default False
        Whether a line says that all is done where no terminal shows a bar.

    Examples
    --------
    >>> with advancing("points") as advance:
    ...     advance(1, 2)
    """
    if not enabled:
        yield lambda done, every: None
        return
    stage, shown = _current.get(), None
    if stage is None or not stage.has_bar:
        if sys.stderr.isatty():
            shown = _bar()
            stage = Stage(what if stage is None else f"{stage.name}: {what}", shown, spoken=False)
        elif stage is None:
            stage = Stage("", None, spoken=True)

    def advance(done: int, every: int) -> None:
        stage.advance(done, every, what)
        if last_line and done == every and not stage.has_bar:
            say(f"{every} {what} done")

    with shown or nullcontext():
        yield advance


class Stage:
    """A stage under way; `result` is what its line says in the end."""

    def __init__(
        self, name: str, bar: Progress | None, spoken: bool, note: Note | None = None
    ) -> None:
        self.name, self.result = name, ""
        self.begun = self._last = self._noted = time.monotonic()
        self._bar, self.spoken, self.note = bar, spoken, note
        self._task = None if bar is None else bar.add_task(name, total=None, count="")

    @property
    def has_bar(self) -> bool:
        """Tell whether a terminal shows it."""
        return self._bar is not None

    def advance(self, done: int, every: int, what: str) -> None:
        """Show how far it is."""
        far = f"{done:,} of {every:,} {what}".rstrip()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=every, count=far)
        elif self.spoken and time.monotonic() - self._last >= _APART:
            self._last = time.monotonic()
            say(f"{self.name}: {far}" if self.name else far)
        if self.note is not None and time.monotonic() - self._noted >= _NOTES_APART:
            self._noted = time.monotonic()
            self.note(far)


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
    note : callable, optional
        Is told every few seconds how far a stage is, for those who look from elsewhere.
    """

    def __init__(self, name: str, enabled: bool | None = None, note: Note | None = None) -> None:
        seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.name, self.enabled = name, seen if enabled is None else enabled
        self.seconds: dict[str, float] = {}
        self._note = note

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
        told = self._note
        note = None if told is None else lambda far: told(f"{name}, {far}")
        stage = Stage(f"{self.name}: {name}", shown, self.enabled, note)
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
