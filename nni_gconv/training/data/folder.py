"""Images in folders, one folder a class, as ImageNet is kept.

Random transforms draw from a generator seeded by ``(seed, epoch, image)``. The result is the same
with any number of workers, and a resumed run sees the same crops.

torchvision is imported where it is used: it brings torch's compiler along, which costs every
process seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nni_gconv.errors import DataError
from nni_gconv.training.seeding import derive_seed

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class FolderData(Dataset[tuple[Tensor, int]]):
    """Image files and their classes.

    ``data[i]`` is image `i` as a uint8 tensor (3, H, W) and its class. ``data[i, seed]`` seeds
    the random transform, which is how the loader asks.
    """

    samples: Sequence[tuple[str, int]]
    transform: Transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        path, label = self.samples[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
            raise DataError(f"{path}: not a readable image ({error})") from error
        if seed is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("image", seed, index))
            return self.transform(image), label


def find_images(root: Path, part: str) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """List ``root/part/CLASS/IMAGE`` in torchvision's order.

    Returns
    -------
    samples : list of (path, class)
        Sorted by class, then by name.
    classes : tuple of str
        Folder names, sorted.

    Raises
    ------
    DataError
        The folder is missing, or one of its classes has no image.
    """
    from torchvision.datasets import ImageFolder

    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing; imagefolder expects {root}/train/CLASS/*.jpg and "
            f"{root}/val/CLASS/*.jpg"
        )
    try:
        found = ImageFolder(str(folder))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: {str(error).splitlines()[0]}") from error
    return [(str(path), int(label)) for path, label in found.samples], tuple(found.classes)


def train_transform(size: int) -> Transform:
    """Random crop of 8 to 100 % of the area and a random flip: uint8 (3, size, size)."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )


def eval_transform(size: int) -> Transform:
    """Resize the short side to 8/7 of `size` and crop the middle: uint8 (3, size, size)."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.Resize(round(size * 8 / 7), antialias=True),
            v2.CenterCrop(size),
            v2.PILToTensor(),
        ]
    )


def labels_of(samples: Sequence[tuple[str, int]]) -> np.ndarray:
    """Return the classes of `samples` as int64 (N,)."""
    return np.fromiter((label for _, label in samples), dtype=np.int64, count=len(samples))
