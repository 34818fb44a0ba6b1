"""CIFAR-10 packed into pieces of some 17 MB, each checked by the hash of its pixels.

The layout is a folder with ``cifar10.json``, ``cifar10_labels.npz`` (arrays ``train`` and
``test``) and the pieces the JSON names::

    {"pieces": [{"file": "cifar10_train_0.xz", "split": "train", "count": 10000,
                 "sha256_pixels": "..."}, ...]}

A piece is an xz stream of residuals uint8 (count, 3, 32, 32). Its three planes are G, R - G and
B - G (mod 256); each pixel was predicted from its west, north and north-west neighbours by the
median predictor of LOCO-I, and the residual (mod 256) was kept.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nni_gconv.errors import DataError
from nni_gconv.training.data.arrays import Arrays, check_arrays

INDEX_FILE = "cifar10.json"
LABEL_FILE = "cifar10_labels.npz"
_SIDE = 32
_MAX_COUNT = 1_000_000


def read_packed(root: Path) -> Arrays:
    """Read the packed CIFAR-10 in `root`; decoding takes some seconds.

    Raises
    ------
    DataError
        A file is missing or damaged, or the decoded pixels have another hash than was recorded.
    """
    pieces = _read_index(root)
    missing = [n for n in [LABEL_FILE, *(p["file"] for p in pieces)] if not (root / n).is_file()]
    if missing:
        raise DataError(f"{root}: {', '.join(missing)} missing, which {INDEX_FILE} names")
    try:
        with np.load(root / LABEL_FILE, allow_pickle=False) as stored:
            labels = {split: np.asarray(stored[split]) for split in ("train", "test")}
    except (ValueError, OSError, KeyError) as error:
        message = f"{root / LABEL_FILE}: expected arrays 'train' and 'test' ({error})"
        raise DataError(message) from error
    with ThreadPoolExecutor(2) as pool:  # xz and NumPy release the interpreter lock
        images = list(pool.map(lambda piece: _read_piece(root, piece), pieces))
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for piece, x in zip(pieces, images, strict=True):
        parts[piece["split"]].append(x)
    joined = {split: np.concatenate(xs) for split, xs in parts.items()}
    for split, x in joined.items():
        check_arrays(root, split, x, labels[split], (_SIDE, _SIDE, 3), 10)
    return Arrays(
        joined["train"],
        labels["train"].astype(np.int64),
        joined["test"],
        labels["test"].astype(np.int64),
    )


def decode_piece(data: bytes, count: int) -> np.ndarray:
    """Undo the packing of one piece.

    Parameters
    ----------
    data : bytes
        An xz stream of ``count * 3 * 32 * 32`` bytes.
    count : int
        Number of images.

    Returns
    -------
    ndarray of uint8, shape (count, 32, 32, 3)
        RGB pixels.

    Raises
    ------
    ValueError
        The stream is damaged or has another length.
    """
    length = count * 3 * _SIDE * _SIDE
    try:  # Never unpack more than was announced, whatever the stream claims.
        raw = lzma.LZMADecompressor().decompress(data, max_length=length + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"not a readable xz stream ({error})") from error
    if len(raw) != length:
        raise ValueError(f"unpacks to {'more' if len(raw) > length else 'less'} than {length} B")
    residual = np.frombuffer(raw, np.uint8).reshape(count, 3, _SIDE, _SIDE)
    # Position first, so that each step below works on contiguous memory.
    residual = np.ascontiguousarray(residual.transpose(2, 3, 0, 1)).astype(np.int16)
    plane = np.zeros_like(residual)
    plane[0, 0] = residual[0, 0]
    for k in range(1, _SIDE):
        plane[0, k] = (residual[0, k] + plane[0, k - 1]) & 255
        plane[k, 0] = (residual[k, 0] + plane[k - 1, 0]) & 255
    for i in range(1, _SIDE):
        for j in range(1, _SIDE):
            west, north, corner = plane[i, j - 1], plane[i - 1, j], plane[i - 1, j - 1]
            # The median of west, north and their planar guess is LOCO-I's predictor.
            low, high = np.minimum(west, north), np.maximum(west, north)
            guess = np.clip(west + north - corner, low, high)
            plane[i, j] = (residual[i, j] + guess) & 255
    green, red, blue = (plane[:, :, :, c].astype(np.uint8) for c in range(3))
    return np.stack([red + green, green, blue + green], -1).transpose(2, 0, 1, 3)


def _read_piece(root: Path, piece: dict[str, Any]) -> np.ndarray:
    path = root / piece["file"]
    try:
        x = np.ascontiguousarray(decode_piece(path.read_bytes(), piece["count"]))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if hashlib.sha256(x.tobytes()).hexdigest() != piece["sha256_pixels"]:
        raise DataError(f"{path}: damaged: the sha256 of its pixels is not the one in {INDEX_FILE}")
    return x


def _read_index(root: Path) -> list[dict[str, Any]]:
    path = root / INDEX_FILE
    try:
        pieces = json.loads(path.read_text(encoding="utf-8"))["pieces"]
        for piece in pieces:
            name, split, count = piece["file"], piece["split"], piece["count"]
            fits = (
                Path(name).name == name  # a plain name: nothing outside the folder is read
                and split in ("train", "test")
                and isinstance(count, int)
                and 0 < count <= _MAX_COUNT
                and isinstance(piece["sha256_pixels"], str)
            )
            if not fits:
                raise ValueError(f"piece {piece}")
        if {piece["split"] for piece in pieces} != {"train", "test"}:
            raise ValueError("pieces of both train and test are needed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an index of packed CIFAR-10 ({error})") from error
    return list(pieces)
