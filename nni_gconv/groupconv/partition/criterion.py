"""Kernel scores: one non-negative number for each filter and input channel.

Pure functions of weights. Tensors give tensors (detached, same device), arrays give arrays.
"""

from __future__ import annotations

import math
import sys
from typing import Any, TypeVar

import numpy as np

from nni_gconv.errors import ConfigError

ArrayT = TypeVar("ArrayT")


def kernel_norms(weight: ArrayT, p: float = 2) -> ArrayT:
    r"""p-norm of each kernel: ``S[f, c] = (sum_k |W[f, c, k]|^p)^(1/p)``.

    The paper's criterion is p = 2 (arXiv 1811.09341), Structured Sparsification's p = 1.

    Parameters
    ----------
    weight : ndarray or Tensor, shape (F, C, ...)
        Convolution weight of any spatial rank, or a Linear weight (F, C).
    p : float, optional
        Order of the norm, greater than 0; ``math.inf`` for the largest entry.

    Returns
    -------
    ndarray or Tensor, shape (F, C)
        Half precision is summed, and returned, in single.

    Raises
    ------
    ConfigError
        If the weight has fewer than two dimensions or `p` is not positive (a ``ValueError``).

    Examples
    --------
    >>> import numpy as np
    >>> kernel_norms(np.array([[[3.0, 4.0], [0.0, -1.0]]])).tolist()
    [[5.0, 1.0]]
    """
    if not p > 0:
        raise ConfigError(f"p: the order of a norm is greater than 0, not {p}")
    magnitude = _kernels(weight)
    if math.isinf(p):
        return _reduced(magnitude, "amax")
    # Scaled by the largest entry, so that squares neither overflow nor vanish.
    top = _reduced(magnitude, "amax")
    scale = top + (top == 0)
    return scale * _reduced((magnitude / scale[..., None]) ** p, "sum") ** (1 / p)


def l1(weight: ArrayT) -> ArrayT:
    """Sum of absolute weights of each kernel: ``S[f, c] = sum_k |W[f, c, k]|``.

    Examples
    --------
    >>> import numpy as np
    >>> l1(np.array([[[3.0, -4.0]]])).tolist()
    [[7.0]]
    """
    return _reduced(_kernels(weight), "sum")


def l2(weight: ArrayT) -> ArrayT:
    """Euclidean norm of each kernel, :func:`kernel_norms` with p = 2."""
    return kernel_norms(weight, 2)


def taylor(weight: ArrayT, grad: ArrayT) -> ArrayT:
    """First-order change of the loss: ``S[f, c] = sum_k |W[f, c, k] dL/dW[f, c, k]|``.

    Parameters
    ----------
    weight, grad : ndarray or Tensor, shape (F, C, ...)
        Weight and its gradient.

    Returns
    -------
    ndarray or Tensor, shape (F, C)

    Raises
    ------
    ConfigError
        If the gradient is missing or of another shape (a ``ValueError``).

    Examples
    --------
    >>> import numpy as np
    >>> taylor(np.array([[[3.0, -4.0]]]), np.array([[[1.0, 0.5]]])).tolist()
    [[5.0]]
    """
    if grad is None:
        raise ConfigError("grad: there is no gradient; run a backward pass before the criterion")
    first, second = _kernels(weight), _kernels(grad)
    if first.shape != second.shape:
        raise ConfigError(
            f"grad: kernels {tuple(second.shape)} do not match the weight's {tuple(first.shape)}"
        )
    return _reduced(first * second, "sum")


def is_tensor(values: object) -> bool:
    """Whether `values` is a torch tensor, without importing torch for those who have none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def _kernels(weight: Any) -> Any:
    """Absolute values as (F, C, kernel), of a type that sums well."""
    if is_tensor(weight):
        values = weight.detach()
        values = values.float() if values.dtype.itemsize < 4 else values
    else:
        values = np.asarray(weight)
        if values.dtype.kind != "f" or values.dtype.itemsize < 4:
            values = values.astype(np.float32 if values.dtype.kind == "f" else np.float64)
    if values.ndim < 2:
        raise ConfigError(
            f"weight: kernels need filters and channels, not shape {tuple(values.shape)}"
        )
    return abs(values.reshape(*values.shape[:2], -1))


def _reduced(values: Any, how: str) -> Any:
    if is_tensor(values):
        return getattr(values, how)(dim=-1)
    return getattr(np, how)(values, axis=-1)
