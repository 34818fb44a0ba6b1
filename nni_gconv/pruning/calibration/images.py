"""Images that show what layers read: some of the training split, never of validation or test."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from nni_gconv.errors import DataError

#: Of fewer images the order of their labels may be chance.
_TELLING = 32


class Calibration:
    """Images, and labels where a criterion needs them, held in memory.

    Parameters
    ----------
    source : Tensor or iterable
        Images ``(N, ...)``, or batches of them: tensors, or tuples that begin with images and
        labels, such as a training loader yields. Use images of the training split as the network
        sees them in evaluation, without random crops.
    images : int, default 1024
        At most so many are taken, the first ones; they have to come in random order.
    batch_size : int, default 256
        Images in one forward or backward pass where not all fit.
    keep_in : str or Path, optional
        Folder in which statistics are kept, see :mod:`nni_gconv.pruning.calibration.kept`: who asks
        for the same of the same network and images reads them there.
    progress : bool, default True
        Whether a bar is shown where standard error is a terminal.

    Attributes
    ----------
    inputs : Tensor, shape (images, ...)
        On the CPU.
    labels : Tensor or None

    Raises
    ------
    DataError
        There are no images, they differ in shape, or hold numbers that are not finite; or they are
        the first of many, and come class by class.

    Examples
    --------
    >>> calibration = Calibration([torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)], images=6)
    >>> tuple(calibration.inputs.shape), calibration.labels
    ((6, 3, 8, 8), None)
    """

    def __init__(
        self,
        source: Tensor | Iterable[Any],
        *,
        images: int = 1024,
        batch_size: int = 256,
        keep_in: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if images < 2 or batch_size < 1:
            raise DataError("calibration: needs at least 2 images and a batch_size from 1")
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            raise DataError(
                "calibration: a Dataset gives one image at a time, batches are needed: "
                "DataLoader(dataset, batch_size=256, shuffle=True)"
            )
        self.batch_size, self.progress = batch_size, progress
        self.keep_in = None if keep_in is None else Path(keep_in).expanduser()
        inputs, labels = _gather([source] if isinstance(source, Tensor) else source, images)
        self.inputs = inputs
        self.labels = labels

    @classmethod
    def of(cls, source: Any) -> Calibration:
        """Return `source` itself if it is one, else make one of it."""
        return source if isinstance(source, cls) else cls(source)

    def typed_for(self, model: nn.Module) -> Calibration:
        """Return the same images in the numbers that a model computes with.

        Examples
        --------
        >>> images = Calibration(torch.zeros(4, 3, dtype=torch.float64))
        >>> images.typed_for(nn.Linear(3, 2)).inputs.dtype
        torch.float32
        """
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        if kind in (None, self.inputs.dtype) or not self.inputs.is_floating_point():
            return self
        typed = copy.copy(self)
        typed.inputs = self.inputs.to(kind)
        return typed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.inputs)


def _gather(batches: Iterable[Any], most: int) -> tuple[Tensor, Tensor | None]:
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    left = iter(batches)
    for batch in left:
        images, *others = batch if isinstance(batch, tuple | list) else [batch]
        if not isinstance(images, Tensor):
            raise DataError(
                f"calibration: a batch begins with a {type(images).__name__}; expected a tensor "
                "of images, or a tuple of images and labels"
            )
        if inputs and images.shape[1:] != inputs[0].shape[1:]:
            shapes = [tuple(x.shape[1:]) for x in (inputs[0], images)]
            raise DataError(f"calibration: images of shape {shapes[0]} and of shape {shapes[1]}")
        if not bool(images.isfinite().all()):
            raise DataError(f"calibration: batch {len(inputs)} holds numbers that are not finite")
        inputs.append(images[: most - count].detach().cpu())
        if others and isinstance(others[0], Tensor) and len(others[0]) == len(images):
            labels.append(others[0][: most - count].detach().cpu())
        count += len(inputs[-1])
        if count >= most:
            break
    if count < 2:
        raise DataError(f"calibration: {count} images; at least 2 are needed")
    found = torch.cat(labels) if len(labels) == len(inputs) else None
    cut = len(images) > len(inputs[-1])
    if found is not None and _by_class(found) and (cut or next(left, None) is not None):
        raise DataError(
            f"calibration: the first {count} images come class by class, {len(found.unique())} in "
            "all, and more follow: give them in random order, DataLoader(..., shuffle=True); where "
            "labels say nothing, images alone: (x for x, _ in loader)"
        )
    return torch.cat(inputs), found


def _by_class(labels: Tensor) -> bool:
    """Tell whether the class changes far less often than in random order.

    Examples
    --------
    >>> _by_class(torch.arange(64) // 32), _by_class(torch.arange(64) % 2)
    (True, False)
    """
    if labels.dim() != 1 or labels.is_floating_point() or len(labels) < _TELLING:
        return False
    shares = labels.unique(return_counts=True)[1] / len(labels)
    expected = len(labels) * (1 - float(shares.square().sum()))
    changes = int((labels[1:] != labels[:-1]).sum())
    return len(shares) == 1 or changes < expected / 4
