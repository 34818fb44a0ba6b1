"""Images in folders, one folder a class, as ImageNet is kept.

Random transforms draw from a generator seeded by ``(seed, epoch, image)``. The result is the same
with any number of workers, and a resumed run sees the same crops.

torchvision is imported where it is used: it brings torch's compiler along, which costs every
process seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nni_gconv.training.data.images import read_rgb
from nni_gconv.training.data.transforms import Transform
from nni_gconv.training.seeding import derive_seed


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
        image = read_rgb(path)
        if seed is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("image", seed, index))
            return self.transform(image), label


def labels_of(samples: Sequence[tuple[str, int]]) -> np.ndarray:
    """Return the classes of `samples` as int64 (N,)."""
    return np.fromiter((label for _, label in samples), dtype=np.int64, count=len(samples))
