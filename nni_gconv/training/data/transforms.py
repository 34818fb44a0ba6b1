"""Transforms of image files: ours by size, or torchvision's by name as a recipe lists them.

torchvision is imported where it is used, see ``folder.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.training.data.images import read_rgb

Transform = Callable[[Image.Image], Tensor]

#: They would make pixels what the loader makes of them, or run code.
_NOT_HERE = {
    "Normalize": "pixels are normalised by data.normalize",
    "ToDtype": "pixels stay bytes until they are normalised",
    "ToTensor": "images become tensors by themselves",
    "ToImage": "images become tensors by themselves",
    "Lambda": "a recipe holds no code",
}


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


def whole_transform(height: int, width: int) -> Transform:
    """The whole image: uint8 (3, height, width)."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize([height, width], antialias=True), v2.PILToTensor()])


def named_transform(steps: Sequence[Any], where: str) -> Transform:
    """Make a chain of torchvision's v2 transforms.

    Parameters
    ----------
    steps : sequence of str or mapping
        ``"RandomHorizontalFlip"`` or ``{"RandomCrop": {"size": 32, "padding": 4}}``.
    where : str
        The key they stand under.

    Raises
    ------
    ConfigError
        An unknown transform, or arguments that it does not take.

    Examples
    --------
    >>> named_transform([{"Resize": {"size": [8, 8]}}], "data.transforms.eval")(
    ...     Image.new("RGB", (20, 10))).shape
    torch.Size([3, 8, 8])
    """
    from torchvision.transforms import v2

    made = [_one(step, f"{where}.{number}") for number, step in enumerate(steps)]
    return v2.Compose([*made, v2.PILToTensor()])


def _one(step: Any, where: str) -> Any:
    from torchvision.transforms import v2

    single = isinstance(step, Mapping) and len(step) == 1
    name, given = next(iter(step.items())) if single else (step, {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}: {step!r} is not allowed (a name, or {{RandomCrop: {{size: 32}}}})"
        )
    if name in _NOT_HERE:
        raise ConfigError(f"{where}: {name} cannot stand here: {_NOT_HERE[name]}")
    known = {
        key: kind
        for key, kind in vars(v2).items()
        if inspect.isclass(kind) and issubclass(kind, v2.Transform) and key not in _NOT_HERE
    }
    if name not in known:
        raise ConfigError(unknown_name("transform", name, known, where))
    try:
        return known[name](**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name}: {str(error).splitlines()[0]}") from error


def shape_after(transform: Transform, path: str, where: str) -> tuple[int, int, int]:
    """Return the shape that a transform makes of the image in a file.

    Raises
    ------
    ConfigError
        It fails, or makes something else than bytes of three channels.
    DataError
        The image cannot be read.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            image = transform(read_rgb(path))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: fails on {path}: {str(error).splitlines()[0]}") from error
    right = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3
    if not right or image.shape[0] != 3:
        raise ConfigError(f"{where}: gives no image of three channels of bytes")
    channels, height, width = (int(n) for n in image.shape)
    return channels, height, width
