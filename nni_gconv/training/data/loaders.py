"""Batches on the device: the same order and the same crops whoever asks, and after a resume.

The order of an epoch depends on ``(seed, epoch)``, what is drawn for a batch on ``(seed, epoch,
batch)``. Several processes cut the same global batches into shards, so that two processes with
half the batch size each train on what one process would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from nni_gconv.errors import DataError
from nni_gconv.training.data.arrays import ArrayData
from nni_gconv.training.data.augment import Augmentation, Draws
from nni_gconv.training.data.bundle import DataBundle
from nni_gconv.training.data.folder import FolderData
from nni_gconv.training.data.settings import DataSettings, Normalize
from nni_gconv.training.seeding import derive_seed, generator

Batch = tuple[Tensor, Tensor]
_RESIDENT_BYTES = 4 * 2**30  # arrays up to this size are kept on the GPU


class Loader(Protocol):
    """Yields ``(images, labels)``: float32 (B, C, H, W), normalised, and int64 (B,)."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random transforms of the next pass."""


@dataclass(frozen=True)
class Loaders:
    """The loaders of a data set."""

    train: Loader
    val: Loader
    test: Loader
    plain: Loader
    """Training images as evaluation sees them, in a random order that the seed fixes, the same in
    every process."""
    input_shape: tuple[int, int, int]
    """(C, H, W) of one image."""
    num_classes: int


@dataclass(frozen=True)
class _Plan:
    """Which images each process takes in which step."""

    count: int
    batch_size: int
    train: bool
    seed: int
    rank: int
    world_size: int
    whole: bool = False
    """Also the incomplete last batch, of images in training's order that train nothing."""

    @property
    def steps(self) -> int:
        if not self.train or self.whole:
            return math.ceil(len(self._shard()) / self.batch_size)
        # An incomplete last batch is left out: it would weigh its images more, and batch norm
        # cannot work on one image. What is left out differs in each epoch.
        return max(1, self.count // (self.batch_size * self.world_size))

    def _shard(self) -> range:
        begin, end = (self.count * r // self.world_size for r in (self.rank, self.rank + 1))
        return range(begin, end)

    @property
    def per_rank(self) -> int:
        """Training images a step of this process."""
        return min(self.batch_size, self.count // self.world_size)

    @property
    def place(self) -> tuple[int, int]:
        """First and last + 1 image of this process in a global training batch."""
        return self.rank * self.per_rank, (self.rank + 1) * self.per_rank

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the images (int64 indices) of each step."""
        if not self.train:
            yield from torch.tensor(self._shard(), dtype=torch.int64).split(self.batch_size)
            return
        order = torch.randperm(self.count, generator=generator("order", self.seed, epoch))
        if self.whole:
            yield from order.split(self.batch_size)
            return
        width = self.per_rank * self.world_size
        begin, end = self.place
        for step in range(self.steps):
            yield order[step * width + begin : step * width + end]


class _Keys(Sampler[list[tuple[int, int]]]):
    """Batches of (image, seed) for a DataLoader; the seed carries the epoch to the workers."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.epoch = 0

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        seed = derive_seed("folder", self.plan.seed, self.epoch)
        for index in self.plan.batches(self.epoch):
            yield [(i, seed) for i in index.tolist()]


class _ArraySource:
    """uint8 batches cut from an array, which stays on the device when it fits."""

    def __init__(self, data: ArrayData, plan: _Plan, device: torch.device) -> None:
        resident = device.type == "cpu" or data.images.nbytes <= _RESIDENT_BYTES
        self.images = data.images.to(device) if resident else data.images
        self.labels = data.labels.to(device) if resident else data.labels
        self.plan = plan

    def batches(self, epoch: int) -> Iterator[Batch]:
        for index in self.plan.batches(epoch):
            where = index.to(self.images.device)
            yield self.images[where], self.labels[where]


class _FolderSource:
    """uint8 batches decoded and cropped by worker processes."""

    def __init__(self, data: FolderData, plan: _Plan, device: torch.device, workers: int) -> None:
        self.keys = _Keys(plan)
        self.loader = DataLoader(
            data,
            batch_sampler=self.keys,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0 and plan.train,
            generator=torch.Generator(),  # else each pass would draw from the global generator
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        self.keys.epoch = epoch
        try:
            yield from self.loader
        except DataError as error:
            # A worker's error comes with its traceback; the last line is the message.
            last = str(error).strip().splitlines()[-1]
            raise DataError(last.split("DataError: ", 1)[-1]) from None


class _Loader:
    """Moves, crops, normalises and blanks the batches of a source, all on the device."""

    def __init__(
        self,
        source: _ArraySource | _FolderSource,
        plan: _Plan,
        normalize: Normalize,
        augmentation: Augmentation | None,
        device: torch.device,
    ) -> None:
        self.source, self.plan, self.device = source, plan, device
        self.augmentation = augmentation
        self.epoch = 0
        mean = torch.tensor(normalize.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(normalize.std, device=device).view(-1, 1, 1)
        self.gain, self.offset = 1 / (255 * std), mean / std

    def __len__(self) -> int:
        return self.plan.steps

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        for step, (images, labels) in enumerate(self.source.batches(self.epoch)):
            pixels = self._transform(images.to(self.device, non_blocking=True), step)
            yield pixels, labels.to(self.device, non_blocking=True)

    def _transform(self, images: Tensor, step: int) -> Tensor:
        if self.augmentation is None:
            return self._scale(images)
        draws = self._draw(self.augmentation, images, step)
        images = self._scale(self.augmentation.crop(images, draws))
        return self.augmentation.blank(images, draws)

    def _scale(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.mul_(self.gain).sub_(self.offset)

    def _draw(self, augmentation: Augmentation, images: Tensor, step: int) -> Draws:
        # Drawn for the global batch and cut: an image gets the same crop however many processes
        # share the batch.
        everyone = augmentation.draw(
            self.plan.per_rank * self.plan.world_size,
            (images.shape[2], images.shape[3]),
            generator("augment", self.plan.seed, self.epoch, step),
        )
        return everyone.part(*self.plan.place, self.device)


def make_loaders(
    bundle: DataBundle,
    settings: DataSettings,
    *,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
) -> Loaders:
    """Cut a data set into batches on `device`.

    Parameters
    ----------
    bundle : DataBundle
        What :func:`~nni_gconv.training.data.load_data` gave.
    settings : DataSettings
        Batch sizes and workers. ``batch_size`` is that of each process.
    seed : int
        With the epoch it fixes the order, with epoch and batch the random transforms.
    device : torch.device or str
        Where batches are wanted.
    rank, world_size : int
        This process among those that train together. Validation and test images are dealt
        out without repeats, so that sums over the processes are exact.

    Returns
    -------
    Loaders
        ``train`` leaves out an incomplete last batch; the others take every image.

    Raises
    ------
    DataError
        There are fewer training images than processes.

    Examples
    --------
    >>> from nni_gconv.training.data import DataSettings, load_data
    >>> settings = DataSettings(name="digits", batch_size=64)
    >>> loaders = make_loaders(load_data(settings), settings, seed=0, device="cpu")
    >>> images, labels = next(iter(loaders.train))
    >>> images.shape, images.dtype, labels.dtype
    (torch.Size([64, 1, 8, 8]), torch.float32, torch.int64)
    """
    device = torch.device(device)
    if len(bundle.train) < world_size:
        raise DataError(f"{len(bundle.train)} training images for {world_size} processes")

    def plain() -> Loader:
        data: ArrayData | FolderData = bundle.train
        if isinstance(data, FolderData) and isinstance(bundle.val, FolderData):
            data = replace(data, transform=bundle.val.transform)
        plan = _Plan(len(data), settings.batch_size, True, seed, 0, 1, whole=True)
        return _Loader(source(data, plan), plan, bundle.normalize, None, device)

    def source(data: ArrayData | FolderData, plan: _Plan) -> _ArraySource | _FolderSource:
        if isinstance(data, FolderData):
            return _FolderSource(data, plan, device, settings.workers)
        return _ArraySource(data, plan, device)

    def build(data: ArrayData | FolderData, train: bool) -> Loader:
        evaluation = settings.eval_batch_size or 2 * settings.batch_size
        size = settings.batch_size if train else evaluation
        plan = _Plan(len(data), size, train, seed, rank, world_size)
        augmentation = bundle.augmentation if train else None
        return _Loader(source(data, plan), plan, bundle.normalize, augmentation, device)

    return Loaders(
        build(bundle.train, True),
        build(bundle.val, False),
        build(bundle.test, False),
        plain(),
        bundle.input_shape,
        bundle.num_classes,
    )
