"""Where each data set comes from, and what is usual for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from nni_gconv.errors import ConfigError, DataError
from nni_gconv.training.data.arrays import RAW_FILES, Arrays, read_raw
from nni_gconv.training.data.packed import INDEX_FILE, read_packed
from nni_gconv.training.data.settings import DataSettings
from nni_gconv.training.data.split import stratified_split
from nni_gconv.training.seeding import derive_seed


@dataclass(frozen=True)
class Source:
    """An array data set: how it is read, and its usual mean, std, crops and flips."""

    read: Callable[[DataSettings, int], Arrays]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int
    padding: int
    flip: bool
    augment: bool = True


_CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def _digits(_: DataSettings, __: int) -> Arrays:
    """1797 scanned digits of 8x8 pixels and 17 gray levels, inside scikit-learn."""
    return _read_digits()


@functools.cache
def _read_digits() -> Arrays:
    from sklearn.datasets import load_digits

    stored: Any = load_digits()
    images = np.rint(stored.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = stored.target.astype(np.int64)
    # One test set for ever, whatever the seed of a run: else runs could not be compared.
    train, test = stratified_split(labels, 360, seed=0, purpose="digits test")
    names = tuple(str(digit) for digit in range(10))
    return Arrays(images[train], labels[train], images[test], labels[test], names)


def _synthetic(settings: DataSettings, seed: int) -> Arrays:
    """One smooth random pattern a class, under noise of three times its strength."""
    classes, channels = settings.num_classes or 10, settings.in_channels or 3
    side = settings.image_size or 32
    rng = np.random.Generator(np.random.PCG64(derive_seed("synthetic", seed)))
    coarse = rng.standard_normal((classes, 4, 4, channels), dtype=np.float32)
    repeat = -(-side // 4)
    patterns = coarse.repeat(repeat, 1).repeat(repeat, 2)[:, :side, :side]

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count, dtype=np.int64) % classes
        noise = rng.standard_normal((count, side, side, channels), dtype=np.float32)
        pixels = 128 + 16 * patterns[labels] + 48 * noise
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), labels

    return Arrays(*part(settings.train_size or 1024), *part(settings.test_size or 256))


def _cifar(name: str, classes: int) -> Callable[[DataSettings, int], Arrays]:
    def read(settings: DataSettings, _: int) -> Arrays:
        root = _root(settings)
        if any((root / file).exists() for file in RAW_FILES):
            arrays = read_raw(root, 32, 3, classes)
        elif name == "cifar10" and (root / INDEX_FILE).exists():
            arrays = read_packed(root)
        else:
            return _from_torchvision(settings, root, "CIFAR10" if classes == 10 else "CIFAR100")
        names = _CIFAR10_CLASSES if classes == 10 else None
        return Arrays(arrays.train_x, arrays.train_y, arrays.test_x, arrays.test_y, names)

    return read


def _fashion_mnist(settings: DataSettings, _: int) -> Arrays:
    root = _root(settings)
    if any((root / file).exists() for file in RAW_FILES):
        return read_raw(root, 28, 1, 10)
    return _from_torchvision(settings, root, "FashionMNIST")


def _root(settings: DataSettings) -> Path:
    if settings.path is None:
        raise ConfigError(f"data.root: {settings.name} needs a folder, for example ~/data")
    return settings.path


_TORCHVISION_FILES = {
    "CIFAR10": "cifar-10-batches-py/",
    "CIFAR100": "cifar-100-python/",
    "FashionMNIST": "FashionMNIST/raw/",
}


def _from_torchvision(settings: DataSettings, root: Path, name: str) -> Arrays:
    """Read what torchvision downloads; it checks CIFAR's files by hash before it opens them."""
    from torchvision import datasets

    def read(download: bool) -> tuple[Any, Any]:
        cls = getattr(datasets, name)
        train = cls(str(root), train=True, download=download)
        return train, cls(str(root), train=False, download=download)

    try:
        if settings.download:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(str(root / f".{settings.name}.lock")):  # trials start together
                train, test = read(True)
        else:
            train, test = read(False)
    except Exception as error:
        raise DataError(_explain(settings, root, name, error)) from error
    return Arrays(
        *(_pixels(train), np.asarray(train.targets, dtype=np.int64)),
        *(_pixels(test), np.asarray(test.targets, dtype=np.int64)),
        tuple(train.classes),
    )


def _pixels(dataset: Any) -> np.ndarray:
    x = np.asarray(dataset.data, dtype=np.uint8)
    return x[..., None] if x.ndim == 3 else x


def _explain(settings: DataSettings, root: Path, name: str, error: Exception) -> str:
    wanted = [f"{_TORCHVISION_FILES[name]} (torchvision's)", " + ".join(RAW_FILES)]
    if settings.name == "cifar10":
        wanted.append(f"{INDEX_FILE} with its pieces")
    expected = f"expected one of: {'; '.join(wanted)}"
    if settings.download:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"data.root: {settings.name} could not be fetched into {root} ({reason}); {expected}"
    there = (root / _TORCHVISION_FILES[name]).is_dir()
    what = "is incomplete or damaged" if there else "is missing"
    return (
        f"data.root: {settings.name} {what} in {root}; {expected}; "
        "or set data.download: true to fetch it there"
    )


SOURCES: dict[str, Source] = {
    "digits": Source(
        _digits, 10, (0.3053,), (0.3763,), side=8, padding=1, flip=False
    ),  # measured on the 1437 training digits
    "cifar10": Source(
        _cifar("cifar10", 10),
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        side=32,
        padding=4,
        flip=True,
    ),
    "cifar100": Source(
        _cifar("cifar100", 100),
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        side=32,
        padding=4,
        flip=True,
    ),
    "fashion_mnist": Source(
        _fashion_mnist, 10, (0.2860,), (0.3530,), side=28, padding=2, flip=True
    ),
    "synthetic": Source(
        _synthetic, 10, (0.5,), (0.2,), side=32, padding=4, flip=True, augment=False
    ),
}
"""Array data sets by name; ``imagefolder`` is read in ``load.py``."""
