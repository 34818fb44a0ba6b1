"""Splits that look at no score: what a learned one is compared with."""

from __future__ import annotations

import numpy as np

from nni_gconv.groupconv.partition.result import Partition, numbered_by_column

PATTERNS = ("shuffle", "random")


def fixed_pattern(
    filters: int, channels: int, num_groups: int, pattern: str, seed: int = 0
) -> Partition:
    """Split filters and channels by a rule.

    Parameters
    ----------
    filters, channels : int
        F and C.
    num_groups : int
        G, which divides both.
    pattern : {"shuffle", "random"}
        ``"shuffle"``: group g has the filters that stand together and every G-th channel, as in
        ShuffleNet (arXiv 1707.01083). ``"random"``: both sides by chance.
    seed : int, default 0
        Of ``"random"``.

    Returns
    -------
    Partition
        Without scores: ``retained`` and ``total`` are 0.

    Examples
    --------
    >>> p = fixed_pattern(4, 6, 2, "shuffle")
    >>> p.row_groups.tolist(), p.col_groups.tolist()
    ([0, 0, 1, 1], [0, 1, 0, 1, 0, 1])
    """
    rows = np.repeat(np.arange(num_groups), filters // num_groups)
    columns = np.tile(np.arange(num_groups), channels // num_groups)
    if pattern == "random":
        rng = np.random.default_rng(seed)
        rows, columns = numbered_by_column(rng.permutation(rows), rng.permutation(columns))
    return Partition(rows, columns, retained=0.0, bound=0.0, total=0.0)
