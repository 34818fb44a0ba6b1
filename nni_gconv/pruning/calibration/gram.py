"""Products of a matrix with itself: half of one is enough, the other half mirrors it."""

from __future__ import annotations

from torch import Tensor

#: Columns from which halves pay.
_WIDE = 512


def gram(x: Tensor) -> Tensor:
    """Return x^T x of (..., n, columns), symmetric to the last bit.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> gram(x).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    found = x.new_empty(*x.shape[:-2], x.shape[-1], x.shape[-1])
    _fill(found, x)
    return found


def _fill(found: Tensor, x: Tensor) -> None:
    columns = x.shape[-1]
    if columns < _WIDE:
        product = x.mT @ x
        found.copy_(product.triu() + product.triu(1).mT)
        return
    half = columns // 2
    left, right = x[..., :half], x[..., half:]
    corner = left.mT @ right
    found[..., :half, half:] = corner
    found[..., half:, :half] = corner.mT
    _fill(found[..., :half, :half], left)
    _fill(found[..., half:, half:], right)
