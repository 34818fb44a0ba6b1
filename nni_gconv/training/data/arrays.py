"""Images kept in memory as one uint8 array, and the folders such arrays are read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from nni_gconv.errors import DataError

RAW_FILES = ("train_x.npy", "train_y.npy", "test_x.npy", "test_y.npy")
"""The raw-array layout: images uint8 (N, H, W, C) or (N, H, W), labels integers (N,)."""


@dataclass(frozen=True)
class Arrays:
    """A data set as it was published: images uint8 (N, H, W, C), labels int64 (N,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    class_names: tuple[str, ...] | None = None


class ArrayData(Dataset[tuple[Tensor, int]]):
    """Images and labels in memory, ready to be cut into batches.

    Parameters
    ----------
    images : Tensor of uint8, shape (N, C, H, W)
        Pixels 0 to 255.
    labels : Tensor of int64, shape (N,)
        Classes from 0.

    Examples
    --------
    >>> data = ArrayData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> len(data), data[1][1]
    (4, 1)
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        index: np.ndarray,
        *,
        channels: int,
        size: int | None,
    ) -> ArrayData:
        """Take the images `index` of (N, H, W, C), repeat gray channels and resize.

        Parameters
        ----------
        images, labels : ndarray
            A data set; `images` may be a memory map, only `index` is read.
        index : ndarray of int
            Ascending positions.
        channels : int
            Channels wanted: those of `images`, or any number when `images` is gray.
        size : int or None
            Side to resize to (bilinear, antialiased); None keeps the side.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(images[index])).permute(0, 3, 1, 2)
        if size is not None and tuple(pixels.shape[2:]) != (size, size):
            parts = [  # In parts: floats of a whole data set would take gigabytes.
                F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
                .round()
                .clamp(0, 255)
                .to(torch.uint8)
                for part in pixels.split(4096)
            ]
            pixels = torch.cat(parts)
        pixels = pixels.expand(-1, channels, -1, -1).contiguous()
        return cls(pixels, torch.from_numpy(labels[index].astype(np.int64)))


def read_raw(root: Path, side: int, channels: int, classes: int) -> Arrays:
    """Read the raw-array layout (:data:`RAW_FILES`) and check shapes, types and labels.

    Parameters
    ----------
    root : Path
        Folder with the four files.
    side, channels, classes : int
        What the data set must have.

    Raises
    ------
    DataError
        A file is missing, unreadable, or is not what it should be; the message names it.
    """
    missing = [name for name in RAW_FILES if not (root / name).is_file()]
    if missing:
        raise DataError(f"{root}: {', '.join(missing)} missing; expected {', '.join(RAW_FILES)}")
    train_x, train_y, test_x, test_y = (_read_npy(root / name) for name in RAW_FILES)
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        check_arrays(root, name, x, y, (side, side, channels), classes)
    return Arrays(
        _with_channel(train_x),
        train_y.astype(np.int64),
        _with_channel(test_x),
        test_y.astype(np.int64),
    )


def check_arrays(
    root: Path, part: str, x: np.ndarray, y: np.ndarray, shape: tuple[int, int, int], classes: int
) -> None:
    """Raise :class:`DataError` unless `x` and `y` are images of `shape` and their classes."""
    allowed = [shape] if shape[2] > 1 else [shape, shape[:2]]
    if x.dtype != np.uint8 or x.shape[1:] not in allowed or not len(x):
        wanted = " or ".join(str(("N", *s)).replace("'", "") for s in allowed)
        raise DataError(
            f"{root}: {part}_x is {x.dtype} {x.shape}, expected uint8 {wanted} with N >= 1"
        )
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{root}: {part}_y is {y.dtype} {y.shape}, expected integers ({len(x)},)")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(
            f"{root}: {part}_y holds labels {y.min()} to {y.max()}, expected 0 to {classes - 1}"
        )


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds several arrays, expected one .npy array")
    return array


def _with_channel(x: np.ndarray) -> np.ndarray:
    return x[..., None] if x.ndim == 3 else x
