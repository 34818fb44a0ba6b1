"""How far each layer is split, and how hard training works at it: numbers in, numbers out.

Paper: Zhang et al., "Structured Sparsification with Joint Optimization of Group Convolution and
Channel Shuffle", UAI 2021, https://arxiv.org/abs/2002.08127. The blocks themselves are found by
:mod:`nni_gconv.groupconv.partition.nested`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: A share of the score is missed by no more than rounding.
_ROUNDING = 1e-12


def deepest(kept: Sequence[float], loss: float) -> int:
    """Number of splits that a layer bears when it may lose a share of its score.

    Unlike in the paper's code the last split is within reach, and a layer that bears none, or has
    no score at all, stays undivided.

    Parameters
    ----------
    kept : sequence of float
        Share of the score inside the groups after 0, 1, 2, ... splits; does not grow.
    loss : float
        Share that may be lost, 0 to 1.

    Returns
    -------
    int
        From 0 to ``len(kept) - 1``.

    Examples
    --------
    >>> kept = (1.0, 0.973451, 0.884956)  # undivided, 2 groups, 4 groups
    >>> [deepest(kept, loss) for loss in (0.0, 0.1, 0.12)]
    [0, 1, 2]
    """
    splits = 0
    for share in kept[1:]:
        if share < 1 - loss - _ROUNDING:
            break
        splits += 1
    return splits


def saved_share(whole: float, costs: Sequence[Sequence[float]], splits: Sequence[int]) -> float:
    """Share of a cost that the splits of layers save.

    Parameters
    ----------
    whole : float
        What the saving is compared with: the cost of the undivided layers, that of the whole
        network, or what a budget wants saved.
    costs : sequence of sequence of float
        Cost of each layer after 0, 1, 2, ... splits.
    splits : sequence of int
        Splits of each layer.

    Examples
    --------
    >>> saved_share(592, [[16, 8, 4], [576, 288, 144, 72]], [0, 1])
    0.4864864864864865
    """
    return sum(c[0] - c[s] for c, s in zip(costs, splits, strict=True)) / whole


def bisect_threshold(
    saved: Callable[[float], float],
    target: float,
    *,
    tolerance: float = 0.0,
    halvings: int = 40,
) -> float:
    """Find a loss of score that saves enough when every layer may lose it.

    Parameters
    ----------
    saved : callable
        Loss, 0 to 1, -> share of the cost that is saved; does not fall.
    target : float
        Share that is to be saved at least; ``saved(1)`` reaches it.
    tolerance : float, default 0
        Stop as soon as the target is exceeded by no more than this.
    halvings : int, default 40
        Of the interval. With these defaults no smaller loss saves enough; with 0.01 and 10 it is
        the rule of the paper's code.

    Returns
    -------
    float

    Examples
    --------
    >>> bisect_threshold(lambda loss: 0.5 if loss >= 0.2 else 0.0, 0.3, halvings=10)
    0.2001953125
    """
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        excess = saved(middle) - target
        if 0 <= excess <= tolerance:
            return middle
        low, high = (low, middle) if excess >= 0 else (middle, high)
    return high


def next_strength(
    strength: float,
    *,
    saved: float,
    before: float,
    target: float,
    epoch: int,
    epochs: int,
    change: float,
    warmup: int = 5,
) -> float:
    """Strength of the penalty after an epoch.

    It grows while an epoch saves less than what is left to save asks of each epoch that is left,
    and falls once the target is reached.

    Parameters
    ----------
    strength : float
        That of the epoch; the paper's lambda.
    saved, before : float
        Share of the cost that is saved after this epoch, and after the one before.
    target : float
        Share to be saved.
    epoch, epochs : int
        This epoch, from 0, and how many there are.
    change : float
        What is added or taken.
    warmup : int, default 5
        Epochs after which nothing changes.

    Returns
    -------
    float
        Never below 0.

    Examples
    --------
    >>> state = {"before": 0.09, "target": 0.3, "epoch": 10, "epochs": 60, "change": 0.25}
    >>> [next_strength(1.0, saved=saved, **state) for saved in (0.091, 0.1, 0.3)]
    [1.25, 1.0, 0.75]
    """
    if epoch < warmup:
        return strength
    if saved >= target:
        return max(0.0, strength - change)
    expected = (target - saved) / (epochs - epoch)
    return strength + change if saved - before < expected else strength
