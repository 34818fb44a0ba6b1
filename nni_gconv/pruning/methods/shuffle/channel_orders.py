"""How the channels of several layers are ordered while a network trains: arrays, no NNI."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from nni_gconv.groupconv.partition import NestedPartition, Partition, arrange

Floats = NDArray[np.float64]


class ChannelOrders:
    """Nested partitions of several layers, improved whenever their scores have changed.

    Parameters
    ----------
    counts : mapping of str to tuple of int
        Layer -> its group counts, see :func:`nni_gconv.groupconv.partition.nested.nested_counts`.
    sides : mapping of str to (hashable, hashable)
        Names of each layer's two sides; sides of one name are ordered alike.
    decay : float
        See :func:`nni_gconv.groupconv.partition.nested.split_costs`.

    Attributes
    ----------
    nested : dict of str to NestedPartition
        Empty before the first scores.

    Examples
    --------
    >>> orders = ChannelOrders({"conv": (1, 2)}, {"conv": ("out", "in")}, decay=0.5)
    >>> orders.follow({"conv": np.array([[1.0, 3.0], [4.0, 2.0]])})
    >>> orders.kept(), orders.costs({"conv": 1})["conv"].tolist()
    ({'conv': (1.0, 0.7)}, [[1.0, 0.0], [0.0, 1.0]])
    """

    def __init__(
        self,
        counts: Mapping[str, tuple[int, ...]],
        sides: Mapping[str, tuple[Hashable, Hashable]],
        decay: float,
    ) -> None:
        self._counts, self._sides, self._decay = counts, sides, decay
        self._scores: dict[str, Floats] = {}
        self.nested: dict[str, NestedPartition] = {}

    def follow(self, scores: Mapping[str, Floats]) -> None:
        """Improve the orders for new scores, or make the first."""
        self._scores = dict(scores)
        self.nested = self._arrange(self._counts, self.nested)

    def _arrange(
        self, counts: Mapping[str, tuple[int, ...]], start: Mapping[str, NestedPartition]
    ) -> dict[str, NestedPartition]:
        names = list(self._scores)
        found = arrange(
            list(self._scores.values()),
            [counts[name] for name in names],
            [self._sides[name][0] for name in names],
            [self._sides[name][1] for name in names],
            decay=self._decay,
            start=[start[name] for name in names] if start else None,
        )
        return dict(zip(names, found, strict=True))

    def kept(self) -> dict[str, tuple[float, ...]]:
        """Share of its scores that each layer keeps in each of its group counts."""
        return {name: nested.kept(self._scores[name]) for name, nested in self.nested.items()}

    def totals(self) -> dict[str, float]:
        """Sum of the scores of each layer."""
        return {name: float(scores.sum()) for name, scores in self._scores.items()}

    def costs(self, depths: Mapping[str, int]) -> dict[str, Floats]:
        """Cost of each kernel, shapes (F, C), where so many splits of each layer count."""
        return {
            name: nested.costs(self._decay, depth=depths[name])
            for name, nested in self.nested.items()
        }

    def partitions(self, groups: Mapping[str, int]) -> dict[str, Partition]:
        """Split each layer in so many groups, as well as the order of its channels leads to.

        Of the hierarchy this one split matters alone from now on, and it is improved.
        """
        counts = {name: (1, count) if count > 1 else (1,) for name, count in groups.items()}
        start = {
            name: NestedPartition(counts[name], *nested.at(groups[name]))
            for name, nested in self.nested.items()
        }
        flat = self._arrange(counts, start)
        return {name: flat[name].last(self._scores[name]) for name in flat}

    def pictures(self, pixels: int = 128) -> dict[str, Tensor]:
        """Scores of each layer in its order, bright where they are large, shapes (1, h, w)."""
        made = {}
        for name, nested in self.nested.items():
            ordered = torch.from_numpy(self._scores[name][np.ix_(*nested.orders())])[None]
            small = adaptive_max_pool2d(ordered, [min(n, pixels) for n in ordered.shape[1:]])
            made[name] = small / small.amax().clamp_min(1e-30)
        return made

    def state_dict(self) -> dict[str, Any]:
        """Return the orders as lists of numbers."""
        return {n: [p.row_groups.tolist(), p.col_groups.tolist()] for n, p in self.nested.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.nested = {
            name: NestedPartition(self._counts[name], *map(np.asarray, groups))
            for name, groups in state.items()
        }
