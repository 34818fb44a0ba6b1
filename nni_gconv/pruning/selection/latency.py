"""A budget of latency: seconds are measured on the really small model, not predicted.

Dense and small model are in their quick forms for inference, as ``export.optimize`` leaves them.

What is measured depends on the machine and on what else runs on it, so masks that meet a budget of
latency are reproducible only as far as the measurement is.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import nn

from nni_gconv.graph import Coupling
from nni_gconv.inference import quick_ratio
from nni_gconv.speedup import ModelSpeedup


def measured_ratio(dense: nn.Module, small: nn.Module, dummy_input: Any) -> float:
    """Return the time of the small model over the dense one's, see :func:`quick_ratio`."""
    return quick_ratio(dense, small, dummy_input)


class LatencyModel:
    """Latency relative to the dense model as a function of the classes removed.

    Each answer builds the small model and runs it beside the dense one (about a second); the same
    widths are measured once only.

    Parameters
    ----------
    model : nn.Module
        The dense model, unwrapped; copied, since its weights do not matter for time.
    dummy_input : Tensor, tuple or dict
        What is timed.
    coupling : Coupling
        Traced from the same model.
    """

    def __init__(self, model: nn.Module, dummy_input: Any, coupling: Coupling) -> None:
        self._dense = copy.deepcopy(model)
        self._input = dummy_input
        self._coupling = coupling
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, removed: np.ndarray) -> float:
        """Return small over dense; exactly 1 where nothing is removed."""
        widths = tuple(int(removed[s.classes].sum()) for s in self._coupling.sets)
        if not any(widths):
            return 1.0
        if widths not in self._known:
            small = ModelSpeedup(
                copy.deepcopy(self._dense),
                self._input,
                self._coupling.masks(removed),
                verify=False,
            ).speedup_model()
            self._known[widths] = measured_ratio(self._dense, small, self._input)
        return self._known[widths]
