"""What a person sees while a network trains: a bar on a terminal, a line an epoch in a file.

An epoch that lasts says once a minute how far it is, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from nni_gconv.display import counting


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class EpochProgress:
    """Progress of one stage, on standard error.

    Parameters
    ----------
    stage : str
        Shown in front of each line.
    epochs : int
        How many there will be.
    enabled : bool
        False shows nothing.
    """

    def __init__(self, stage: str, epochs: int, enabled: bool) -> None:
        self.stage, self.epochs, self.enabled = stage, epochs, enabled
        self._bar: Progress | None = None
        self._epoch = ExitStack()
        if enabled and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(stage)

    def __enter__(self) -> EpochProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._epoch.close()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, epoch: int, steps: int) -> None:
        """Start the bar of `epoch` (from 1)."""
        if self._bar is not None:
            text = f"{self.stage} {epoch}/{self.epochs}"
            self._bar.reset(self._task, total=steps, description=text)
        self._epoch.close()
        what = f"steps of epoch {epoch}/{self.epochs}"
        told = counting(what, steps, enabled=self.enabled and self._bar is None)
        self._counted = self._epoch.enter_context(told)

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)
        self._counted()

    def end(self, epoch: int, record: Mapping[str, float]) -> None:
        """Show the numbers of a finished epoch (from 1)."""
        if not self.enabled:
            return
        # In the 80 columns of a terminal.
        line = (
            f"{self.stage} {epoch}/{self.epochs}  loss {record['loss']:.4f}, "
            f"val {record['val_loss']:.4f}  val accuracy {record['val_accuracy']:.4f}  "
            f"lr {record['lr']:.2g}  {record['seconds']:.1f} s"
        )
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - meant for a person
