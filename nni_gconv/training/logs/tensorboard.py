"""TensorBoard's files of one run, in which nothing stands twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nni_gconv.files import atomic_path

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_BINS = 40


class Events:
    """Writes scalars, histograms and images for TensorBoard, each tag and step once.

    A run that was killed goes on in a new file and repeats what it may have lost; what the old
    files hold is read first and not written again.

    Parameters
    ----------
    folder : Path
        Made when something is written.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for _ in range(2):
    ...     events = Events(folder)
    ...     events.scalar("train/loss", 0.5, 1)
    ...     events.close()
    >>> sorted(Events(folder).written())
    [('train/loss', 1)]
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._seen: set[tuple[str, int]] | None = None

    def written(self) -> set[tuple[str, int]]:
        """Return the tag and step of all that is there already."""
        if self._seen is None:
            self._seen = {
                (value.tag, event.step)
                for file in self._files()
                for event in _load(file)
                for value in event.summary.value
            }
        return self._seen

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number."""
        if self._new(tag, step):
            self._open().add_scalar(tag, value, step)

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        """Write how numbers are distributed; those that are not finite are left out."""
        numbers = values.detach().float().cpu().numpy().ravel()
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size and self._new(tag, step):
            self._open().add_histogram(tag, numbers, step, bins=_BINS)  # type: ignore[arg-type]

    def image(self, tag: str, image: torch.Tensor, step: int) -> None:
        """Write an image (C, H, W), numbers in [0, 1] or uint8."""
        if self._new(tag, step):
            self._open().add_image(tag, image.detach().cpu(), step)

    def forget(self, prefix: str) -> None:
        """Remove what stands under tags that begin so."""
        if not any(tag.startswith(prefix) for tag, _ in self.written()):
            return
        self.close()
        for file in self._files():
            _drop(file, prefix)
        self._seen = None

    def flush(self) -> None:
        """Write to disk what is still in memory."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _new(self, tag: str, step: int) -> bool:
        seen = self.written()
        if (tag, step) in seen:
            return False
        seen.add((tag, step))
        return True

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            # TensorBoard reads files in the order of their names, which hold the second and then
            # a plain count: of two that begin in one second, 10 would be read before 9.
            seconds = {file.name.split(".")[3] for file in self._files()}
            while f"{int(time.time()):010d}" in seconds:
                time.sleep(0.02)
            self._writer = SummaryWriter(str(self._folder))
        return self._writer

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))


def _load(file: Path) -> Iterator[Any]:
    """Read the events of a file, as far as it is whole."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return iter(LegacyEventFileLoader(str(file)).Load())


def _drop(file: Path, prefix: str) -> None:
    """Write a file anew without the tags that begin so."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        writer = RecordWriter(stream)
        for event in _load(file):
            kept = [value for value in event.summary.value if not value.tag.startswith(prefix)]
            if len(kept) < len(event.summary.value):
                if not kept:
                    continue
                del event.summary.value[:]
                event.summary.value.extend(kept)
            writer.write(event.SerializeToString())
        writer.flush()
