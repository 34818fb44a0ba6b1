"""Channels that say nothing for a while: zeros in the weights themselves, and the weights back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from nni_gconv.graph import Coupling


@contextmanager
def silenced(model: nn.Module, coupling: Coupling, removed: np.ndarray) -> Iterator[None]:
    """Silence classes of channels in place; after the block the weights are as they were.

    They are silenced as by a pruner's masks: their filters, their biases, and the scale and shift
    of every norm behind them are zero.

    Parameters
    ----------
    model : nn.Module
        The model, unwrapped.
    coupling : Coupling
        Traced from it, or from a copy of it.
    removed : ndarray of bool, shape (classes,)
        The classes to silence.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> coupling = Coupling.trace(net, torch.zeros(1, 3, 8, 8))
    >>> removed = coupling.empty()
    >>> removed[coupling.sets[0].classes[[1, 3]]] = True
    >>> with silenced(net, coupling, removed):
    ...     int((net[0].bias == 0).sum())
    2
    >>> int((net[0].bias == 0).sum())
    0
    """
    changed: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for axis in coupling.channels.axes.values():
                rows = np.flatnonzero(removed[coupling.channels.of(axis.labels)])
                if axis.role in ("row", "bias", "scale") and len(rows):
                    module, _, name = axis.tensor.rpartition(".")
                    tensor = getattr(model.get_submodule(module), name)
                    changed.append((tensor, tensor.detach().clone()))
                    tensor.index_fill_(axis.dim, torch.from_numpy(rows).to(tensor.device), 0)
        yield
    finally:
        with torch.no_grad():
            for tensor, original in reversed(changed):
                tensor.copy_(original)
