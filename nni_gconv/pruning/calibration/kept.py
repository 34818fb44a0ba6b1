"""Statistics kept in a file, so that the same network and images are looked at but once.

A file is named after what it was gathered from: weights, images, the traced forward and settings.
It is a safetensors file, whose head says the same again beside the digest of its numbers; what does
not agree with that is gathered anew. The matrices are symmetric: half of each is written.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nni_gconv.errors import ConfigError
from nni_gconv.files import lock_of, output_file, sort_header
from nni_gconv.training import in_every_process, process_number, several_processes

_logger = logging.getLogger(__name__)

#: Changes whenever other numbers would be gathered from the same content.
_FORMAT = "moments 2"


def content_key(words: Iterable[str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of texts and of tensors with their names, types and shapes.

    Examples
    --------
    >>> one, other = torch.zeros(2), torch.zeros(2, 1)
    >>> content_key(["a"], {"x": one}) == content_key(["a"], {"x": one.clone()})
    True
    >>> content_key(["a"], {"x": one}) == content_key(["a"], {"x": other})
    False
    """
    digest = hashlib.sha256()
    for text in (_FORMAT, *words):
        digest.update(f"{len(text)} {text}".encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def gathered_once(
    folder: Path | None, key: str, gather: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Read symmetric matrices from a folder, or gather them and leave them there.

    Parameters
    ----------
    folder : Path or None
        Made when missing. None: nothing is kept.
    key : str
        Of what they are gathered from, see :func:`content_key`.
    gather : callable
        Returns the matrices by name; called by every process of a training or by none.
        Other processes that look for the same file wait meanwhile.

    Raises
    ------
    ConfigError
        The folder cannot be made. (A file that cannot be written is a warning.)
    """
    if folder is None:
        return gather()
    path = folder / f"moments-{key[:24]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = nullcontext() if several_processes() else lock_of(path.with_suffix(".lock"))
    except OSError as error:
        raise ConfigError(f"calibration: {folder}: {error.strerror or error}") from None
    with waiting:
        found = _read(path, key)
        if in_every_process(found is not None) and found is not None:
            return found
        found = gather()
        if process_number()[0] == 0:
            _write(path, key, found)
    return found


def _write(path: Path, key: str, matrices: Mapping[str, Tensor]) -> None:
    halves = {name: matrix[..., _upper(matrix)] for name, matrix in matrices.items()}
    about = {"nni_gconv": _FORMAT, "key": key, "sha256": _digest(halves)}
    try:
        with output_file(path) as temporary:
            save_file(halves, temporary, metadata=about)
            sort_header(temporary)
    except ConfigError as error:  # the statistics are at hand all the same
        _logger.warning("calibration: %s", error)


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            halves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("key") != key or about.get("sha256") != _digest(halves):
            raise ValueError
        found = {name: _whole(half) for name, half in halves.items()}
    except (OSError, SafetensorError, ValueError, RuntimeError):
        _logger.warning("calibration: %s is damaged; its statistics are gathered anew", path)
        return None
    _logger.info("calibration: statistics read from %s", path)
    return found


def _upper(matrix: Tensor) -> Tensor:
    return torch.ones(matrix.shape[-2:], dtype=torch.bool).triu()


def _whole(half: Tensor) -> Tensor:
    """Undo what was done to (..., n, n)."""
    size = int((8 * half.shape[-1] + 1) ** 0.5 - 1) // 2
    if half.dtype != torch.float64 or size * (size + 1) // 2 != half.shape[-1]:
        raise ValueError
    whole = half.new_zeros(*half.shape[:-1], size, size)
    whole[..., _upper(whole)] = half
    return whole + whole.triu(1).mT


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return content_key([], {name: tensors[name] for name in sorted(tensors)})


def _bytes(tensor: Tensor) -> Any:
    """What a tensor holds, as bytes that are not copied."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
