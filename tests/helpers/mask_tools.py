"""What the tests of all pruners ask of masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Built = TypeVar("Built")
Masks = dict[str, dict[str, Tensor | None]]


class Stop(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def seeded(build: Callable[[], Built], seed: int = 0) -> Built:
    """Build a network whose weights a seed decides."""
    torch.manual_seed(seed)
    return build()


def alive(mask: Tensor, dim: int = 0) -> Tensor:
    """Tell which channels along an axis are not masked as a whole, (channels,) of bool."""
    return mask.movedim(dim, 0).flatten(1).any(1)


def widths(masks: Masks, *names: str) -> list[int]:
    """Count the filters left in each layer."""
    return [int(alive(masks[name]["weight"]).sum()) for name in names]


def same_masks(a: Masks, b: Masks) -> bool:
    """Tell whether two sets of masks have the same entries in the same order, bit for bit."""
    return list(a) == list(b) and all(
        list(a[m]) == list(b[m])
        and all(
            x is None if y is None else torch.equal(x, y)
            for x, y in zip(a[m].values(), b[m].values(), strict=True)
        )
        for m in a
    )
