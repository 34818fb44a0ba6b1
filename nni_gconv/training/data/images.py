"""An image file as three channels of bytes, or one line that says why it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from nni_gconv.errors import DataError


def read_rgb(path: str) -> Image.Image:
    """Decode an image file.

    Parameters
    ----------
    path : str
        Any format that Pillow reads.

    Returns
    -------
    Image
        Of mode RGB; gray and palette are converted, transparency is left out.

    Raises
    ------
    DataError
        It cannot be read, or its pixels have more than 8 bits.
    """
    with _opened(path) as file:
        return file.convert("RGB")


def image_size(path: str) -> tuple[int, int]:
    """Return height and width from an image's header.

    Raises
    ------
    DataError
        As of :func:`read_rgb`, but for what only its pixels tell.
    """
    with _opened(path) as file:
        width, height = file.size
    return height, width


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":  # Pillow would cut every pixel off at 255
                raise DataError(
                    f"{path}: its pixels have more than 8 bits (mode {file.mode}), and would be "
                    "white from 255 on; save it with 8 bits a channel"
                )
            yield file
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises all four
        raise DataError(f"{path}: not a readable image ({error})") from error
