"""How a folder of images is laid out, and what each part of it serves for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nni_gconv.errors import DataError, nearest
from nni_gconv.training.data.images import image_size

Samples = list[tuple[str, int]]

#: Folders that are a part of a data set, not a class.
_VALIDATION = ("val", "valid", "validation")
_PARTS = ("train", *_VALIDATION, "test")
#: So many images are looked at to find whether all have one size.
_LOOKED_AT = 512


@dataclass(frozen=True)
class Layout:
    """The images of a folder by what they serve for.

    Attributes
    ----------
    train : list of (path, class)
        To train on, and to hold out what has no folder of its own.
    val, test : list of (path, class) or None
        None: they are held out of `train`.
    classes : tuple of str
        Names, sorted.
    folders : dict of str to str
        Part -> the folder it is from.
    """

    train: Samples
    val: Samples | None
    test: Samples | None
    classes: tuple[str, ...]
    folders: dict[str, str]


def find_layout(root: Path) -> Layout:
    """Find ``root/CLASS/IMAGE``, or ``root/train/CLASS/IMAGE`` with ``val/`` and ``test/`` beside.

    With ``train/`` and ``val/`` alone the images of ``val/`` are the test images, as of ImageNet,
    and validation is held out of ``train/``.

    Raises
    ------
    DataError
        There are no images, a class has none, or the parts have different classes.
    """
    if not root.is_dir():
        close = nearest(root.name, _folders(root.parent), count=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{root}: no such folder{hint}")
    if not (root / "train").is_dir():
        samples, classes = _plain(root)
        return Layout(samples, None, None, classes, {"train": f"{root.name}/"})
    samples, classes = find_images(root, "train")
    val_name = next((name for name in _VALIDATION if (root / name).is_dir()), None)
    others = {}
    for name in (val_name, "test"):
        if name is not None and (root / name).is_dir():
            others[name], found = find_images(root, name)
            _check_classes(root, name, classes, found)
    folders = {"train": "train/"}
    val = others.get(val_name) if val_name is not None else None
    test = others.get("test")
    if test is not None:
        folders["test"] = "test/"
    elif val is not None:
        val, test, folders["test"] = None, val, f"{val_name}/"
    if val is not None:
        folders["val"] = f"{val_name}/"
    return Layout(samples, val, test, classes, folders)


def _plain(root: Path) -> tuple[Samples, tuple[str, ...]]:
    found = [name for name in _folders(root) if not name.startswith(".")]
    if len(found) < 2 or set(found) & set(_PARTS):
        raise DataError(
            f"{root}/train is missing; imagefolder expects {root}/CLASS/*.jpg with two classes or "
            f"more, or {root}/train/CLASS/*.jpg with {root}/val or {root}/test beside it"
        )
    return find_images(root, "")


def find_images(root: Path, part: str) -> tuple[Samples, tuple[str, ...]]:
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
        One of its classes has no image.
    """
    from torchvision.datasets import ImageFolder

    folder = root / part
    try:
        found = ImageFolder(str(folder))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: {str(error).splitlines()[0]}") from error
    return [(str(path), int(label)) for path, label in found.samples], tuple(found.classes)


def _check_classes(root: Path, part: str, classes: Sequence[str], found: Sequence[str]) -> None:
    odd = sorted(set(classes) ^ set(found))
    if odd:
        raise DataError(f"{root}: train/ and {part}/ have different classes, first {odd[0]!r}")


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def common_size(samples: Samples) -> tuple[int, int] | None:
    """Return height and width if all images have the same; of many, some hundreds are looked at.

    Raises
    ------
    DataError
        One of them cannot be read.
    """
    step = max(1, len(samples) // _LOOKED_AT)
    sizes = {image_size(path) for path, _ in samples[::step]}
    return sizes.pop() if len(sizes) == 1 else None
