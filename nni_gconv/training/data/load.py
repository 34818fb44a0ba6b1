"""From the settings of a data set to its three parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nni_gconv.errors import ConfigError
from nni_gconv.training.data.arrays import ArrayData
from nni_gconv.training.data.augment import Augmentation
from nni_gconv.training.data.bundle import DataBundle
from nni_gconv.training.data.folder import FolderData, labels_of
from nni_gconv.training.data.layout import Layout, Samples, common_size, find_layout
from nni_gconv.training.data.settings import DataSettings, Normalize
from nni_gconv.training.data.sources import SOURCES, Source
from nni_gconv.training.data.split import stratified_split
from nni_gconv.training.data.transforms import (
    Transform,
    eval_transform,
    named_transform,
    shape_after,
    train_transform,
    whole_transform,
)

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
        raise ConfigError(
            "data.root: imagefolder needs a folder of CLASS/*.png, or with train/ and val/ in it"
        )
    if settings.in_channels not in (None, 3):
        raise ConfigError(f"data.in_channels: imagefolder has 3, not {settings.in_channels}")
    if settings.download:
        raise ConfigError("data.download: imagefolder cannot be fetched; put it into data.root")
    found = find_layout(settings.path)
    pool, test = _with_test(settings, found)
    train, val, test_index = _split(
        settings, labels_of(pool), labels_of(test), seed, hold_out=found.val is None
    )

    def part(samples: Sequence[tuple[str, int]], index: np.ndarray) -> Sequence[tuple[str, int]]:
        return [samples[i] for i in index]

    parts = {"train": part(pool, train), "test": part(test, test_index)}
    parts["val"] = part(pool, val) if found.val is None else found.val
    moving, still, shape, size_from, augmentation = _transforms(settings, found.train)
    return DataBundle(
        FolderData(parts["train"], moving),
        FolderData(parts["val"], still),
        FolderData(parts["test"], still),
        len(found.classes),
        shape,
        found.classes,
        _describe_folder(settings, found, parts, shape, size_from),
        _normalize(settings, _IMAGENET, 3),
        augmentation,
    )


def _with_test(settings: DataSettings, found: Layout) -> tuple[Samples, Samples]:
    """Hold the test images out where they have no folder; they do not depend on the run's seed."""
    if found.test is not None:
        return found.train, found.test
    count = max(1, round(settings.test_fraction * len(found.train)))
    if count >= len(found.train) - 1:
        raise ConfigError(
            f"data.test_fraction: {settings.test_fraction} of {len(found.train)} images leaves "
            "none to train"
        )
    rest, test = stratified_split(labels_of(found.train), count, seed=0, purpose="test")
    return [found.train[i] for i in rest], [found.train[i] for i in test]


def _transforms(
    settings: DataSettings, samples: Samples
) -> tuple[Transform, Transform, tuple[int, int, int], str, Augmentation | None]:
    """Transforms of training and evaluation, the shape they make, whose size that is, the rest."""
    cutout = Augmentation(cutout=settings.cutout) if settings.cutout else None
    named = settings.transforms
    if named is not None:
        still = named_transform(named.eval, "data.transforms.eval")
        moving = (
            still if named.train is None else named_transform(named.train, "data.transforms.train")
        )
        shape = shape_after(still, samples[0][0], "data.transforms.eval")
        if shape_after(moving, samples[0][0], "data.transforms.train") != shape:
            raise ConfigError("data.transforms: train and eval make images of different sizes")
        return moving, still, shape, "data.transforms", cutout
    native, asked = common_size(samples), settings.image_size
    if native is not None and asked in (None, *({native[0]} if native[0] == native[1] else ())):
        height, width = native
        still = whole_transform(height, width)
        crops = settings.augment is not False
        padding = max(1, round(min(native) / 8)) if crops else 0
        augmentation = Augmentation(padding, crops, settings.cutout) if crops else cutout
        return still, still, (3, height, width), "the images' own size", augmentation
    size = asked or 224
    still = eval_transform(size)
    moving = still if settings.augment is False else train_transform(size)
    whose = "data.image_size" if asked else "images of several sizes are resized"
    return moving, still, (3, size, size), whose, cutout


def _split(
    settings: DataSettings,
    train_y: np.ndarray,
    test_y: np.ndarray,
    seed: int,
    *,
    hold_out: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of train and val (into the training part) and of test."""
    pool, test = np.arange(len(train_y)), np.arange(len(test_y))
    # Subsets do not depend on the seed: a quick run with another seed sees the same images.
    if settings.train_size is not None:
        pool = _subset("train_size", settings.train_size, train_y)
    if settings.test_size is not None:
        test = _subset("test_size", settings.test_size, test_y)
    if not hold_out:
        return pool, pool[:0], test
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


def _describe_folder(
    settings: DataSettings,
    found: Layout,
    parts: Mapping[str, Sequence[tuple[str, int]]],
    shape: tuple[int, int, int],
    size_from: str,
) -> str:
    """Say how many images serve for what, where they are from, and how large they are."""
    whole = found.folders["train"]
    test = found.folders.get("test", f"{settings.test_fraction:.0%} of {whole}, held out")
    val = found.folders.get("val", f"{settings.val_fraction:.0%} of {whole}, held out")
    size = "x".join(str(n) for n in shape)
    return (
        f"imagefolder: {len(parts['train'])} train, {len(parts['val'])} validation ({val}), "
        f"{len(parts['test'])} test ({test}), {_classes(found.classes)}, {size} ({size_from})"
    )


def _classes(names: Sequence[str]) -> str:
    """Say how many there are, and where an order of numbers is not the one that is taken."""
    said = f"{len(names)} classes"
    if not all(name.isdecimal() for name in names):
        return said
    for number, (name, other) in enumerate(zip(names, sorted(names, key=int), strict=True)):
        if name != other:
            order = "in the order of text, as torchvision has them"
            return f"{said} {order}: {name!r} is class {number}"
    return said
