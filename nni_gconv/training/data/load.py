"""From the settings of a data set to its three parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nni_gconv.errors import ConfigError, DataError
from nni_gconv.training.data.arrays import ArrayData
from nni_gconv.training.data.augment import Augmentation
from nni_gconv.training.data.bundle import DataBundle
from nni_gconv.training.data.folder import (
    FolderData,
    eval_transform,
    find_images,
    labels_of,
    train_transform,
)
from nni_gconv.training.data.settings import DataSettings, Normalize
from nni_gconv.training.data.sources import SOURCES, Source
from nni_gconv.training.data.split import stratified_split

_IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def load_data(settings: DataSettings, seed: int = 0) -> DataBundle:
    """Load a data set and hold validation images out of its training part.

    Parameters
    ----------
    settings : DataSettings
        Which data set, from where.
    seed : int, default 0
        Seed of the run; fixes the validation split (and the images of ``synthetic``) unless
        ``settings.seed`` does. The test images never depend on it.

    Returns
    -------
    DataBundle
        Data sets, shapes and what is usual for them.

    Raises
    ------
    DataError
        Data is missing or damaged; the message says what was expected where.
    ConfigError
        The settings do not fit the data set.

    Examples
    --------
    >>> bundle = load_data(DataSettings(name="digits"))
    >>> bundle.description
    'digits: 1293 train, 144 validation, 360 test, 10 classes, 1x8x8'
    """
    seed = seed if settings.seed is None else settings.seed
    if settings.name == "imagefolder":
        return _load_folder(settings, seed)
    return _load_arrays(settings, SOURCES[settings.name], seed)


def _load_arrays(settings: DataSettings, source: Source, seed: int) -> DataBundle:
    arrays = source.read(settings, seed)
    train, val, test = _split(settings, arrays.train_y, arrays.test_y, seed)
    native = arrays.train_x.shape[3]
    channels = settings.in_channels or native
    if native not in (channels, 1):
        raise ConfigError(f"data.in_channels: {settings.name} has {native}, not {channels}")
    size = settings.image_size
    side = size or arrays.train_x.shape[1]

    def part(which: str, index: np.ndarray) -> ArrayData:
        x, y = (
            (arrays.test_x, arrays.test_y) if which == "test" else (arrays.train_x, arrays.train_y)
        )
        return ArrayData.from_arrays(x, y, index, channels=channels, size=size)

    augmentation = None
    if settings.augment if settings.augment is not None else source.augment:
        padding = max(1, round(source.padding * side / source.side))
        augmentation = Augmentation(padding, source.flip, settings.cutout)
    elif settings.cutout:
        augmentation = Augmentation(cutout=settings.cutout)
    classes = settings.num_classes or source.num_classes
    usual = Normalize(mean=source.mean, std=source.std)
    return DataBundle(
        part("train", train),
        part("train", val),
        part("test", test),
        classes,
        (channels, side, side),
        arrays.class_names,
        _describe(settings, (train, val, test), classes, (channels, side, side)),
        _normalize(settings, usual, channels),
        augmentation,
    )


def _load_folder(settings: DataSettings, seed: int) -> DataBundle:
    if settings.path is None:
        raise ConfigError("data.root: imagefolder needs a folder with train/ and val/ in it")
    if settings.in_channels not in (None, 3):
        raise ConfigError(f"data.in_channels: imagefolder has 3, not {settings.in_channels}")
    if settings.download:
        raise ConfigError("data.download: imagefolder cannot be fetched; put it into data.root")
    train_samples, names = find_images(settings.path, "train")
    test_samples, test_names = find_images(settings.path, "val")
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise DataError(
            f"{settings.path}: train/ and val/ have different classes, first {odd[0]!r}"
        )
    train, val, test = _split(settings, labels_of(train_samples), labels_of(test_samples), seed)
    size = settings.image_size or 224
    still = eval_transform(size)
    moving = still if settings.augment is False else train_transform(size)

    def part(samples: Sequence[tuple[str, int]], index: np.ndarray) -> Sequence[tuple[str, int]]:
        return [samples[i] for i in index]

    return DataBundle(
        FolderData(part(train_samples, train), moving),
        FolderData(part(train_samples, val), still),
        FolderData(part(test_samples, test), still),
        len(names),
        (3, size, size),
        names,
        _describe(settings, (train, val, test), len(names), (3, size, size)),
        _normalize(settings, _IMAGENET, 3),
        Augmentation(cutout=settings.cutout) if settings.cutout else None,
    )


def _split(
    settings: DataSettings, train_y: np.ndarray, test_y: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of train and val (into the training part) and of test."""
    pool, test = np.arange(len(train_y)), np.arange(len(test_y))
    # Subsets do not depend on the seed: a quick run with another seed sees the same images.
    if settings.train_size is not None:
        pool = _subset("train_size", settings.train_size, train_y)
    if settings.test_size is not None:
        test = _subset("test_size", settings.test_size, test_y)
    count = max(1, round(settings.val_fraction * len(pool)))
    if count >= len(pool):
        raise ConfigError(
            f"data.val_fraction: {settings.val_fraction} of {len(pool)} images leaves none to train"
        )
    train, val = stratified_split(train_y[pool], count, seed)
    return pool[train], pool[val], test


def _subset(key: str, count: int, labels: np.ndarray) -> np.ndarray:
    if count > len(labels):
        raise ConfigError(f"data.{key}: {count} is more than the {len(labels)} images there are")
    return stratified_split(labels, count, seed=0, purpose=key)[1]


def _normalize(settings: DataSettings, usual: Normalize, channels: int) -> Normalize:
    chosen = settings.normalize or usual
    if len(chosen.mean) == channels:
        return chosen
    if len(chosen.mean) == 1:  # gray statistics, for images whose channels are alike
        return Normalize(mean=chosen.mean * channels, std=chosen.std * channels)
    raise ConfigError(
        f"data.normalize: {len(chosen.mean)} numbers for images of {channels} channels"
    )


def _describe(
    settings: DataSettings,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: int,
    shape: tuple[int, int, int],
) -> str:
    train, val, test = (len(part) for part in parts)
    size = "x".join(str(n) for n in shape)
    return (
        f"{settings.name}: {train} train, {val} validation, {test} test, {classes} classes, {size}"
    )
