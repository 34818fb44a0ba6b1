"""Which scale of the pixels trained weights expect: ImageNet's usual one is not everybody's."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from nni_gconv.training.data import DataSettings

#: Of validation images that are looked at.
_BATCHES = 16
#: Mean and standard deviation of each channel, and what it is called.
_SCALES = {"0 to 1": (0.0, 1.0), "-1 to 1": (0.5, 0.5)}


def scaled_to_fit(network: nn.Module, settings: DataSettings) -> tuple[DataSettings, str]:
    """Find the scale with which trained weights are right on validation images of a folder.

    Parameters
    ----------
    network : nn.Module
        With its trained weights.
    settings : DataSettings
        Of the images; those of data sets by name keep their own scale.

    Returns
    -------
    settings : DataSettings
        With another ``normalize`` where ImageNet's is clearly worse: by more images than chance
        explains, three standard deviations.
    said : str
        What was found, in a line; "" where nothing changes.
    """
    from nni_gconv.training.data import Normalize

    if settings.name != "imagefolder" or settings.normalize is not None:
        return settings, ""
    usual, count = _accuracy(network, settings)
    for name, (mean, std) in _SCALES.items():
        normalize = Normalize(mean=(mean,) * 3, std=(std,) * 3)
        other = settings.model_copy(update={"normalize": normalize})
        found, _ = _accuracy(network, other)
        if (found - usual) * count > 3 * math.sqrt(count / 2):
            said = (
                f"the weights expect pixels from {name}: val accuracy {found:.4f}, with ImageNet's "
                f"mean and deviation {usual:.4f}: the images are scaled so"
            )
            return other, said
    return settings, ""


def _accuracy(network: nn.Module, settings: DataSettings) -> tuple[float, int]:
    from nni_gconv.training import evaluate
    from nni_gconv.training.data import load_data, make_loaders

    settings = settings.model_copy(update={"workers": 0})
    loaders = make_loaders(load_data(settings), settings, seed=0, device="cpu")
    some = itertools.islice(loaders.val, _BATCHES)
    found = evaluate(network.eval(), some, device="cpu")
    return found.accuracy, found.count
