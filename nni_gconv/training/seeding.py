"""Random numbers that depend on a seed and a place, never on what was drawn before.

A run that is killed and resumed must end with the same weights as one that was not. Storing the
state of every generator would do it; deriving each generator from ``(seed, epoch, batch)`` does
it with nothing to store.
"""

from __future__ import annotations

import os
import random
import zlib

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Mix integers and words into one seed.

    Parameters
    ----------
    *parts : int or str
        What the random numbers are for, for example ``("order", seed, epoch)``.

    Returns
    -------
    int
        A number in [0, 2**63), the same on every machine and in every process.

    Examples
    --------
    >>> derive_seed("order", 0, 1) == derive_seed("order", 0, 1)
    True
    >>> derive_seed("order", 0, 1) == derive_seed("order", 1, 0)
    False
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else p & (2**64 - 1) for p in parts]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with :func:`derive_seed` of `parts`.

    It is always on the CPU: the numbers are then the same whether a batch is used there or on a
    GPU.
    """
    return torch.Generator().manual_seed(derive_seed(*parts))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask CUDA for deterministic kernels.

    Operations without a deterministic CUDA kernel still run and warn. cuDNN's benchmark mode is
    switched off, because it may choose another kernel in another process.

    Parameters
    ----------
    seed : int
        Any integer.

    Examples
    --------
    >>> seed_everything(3); a = torch.rand(2)
    >>> seed_everything(3); bool((torch.rand(2) == a).all())
    True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code may draw from the global generator
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
