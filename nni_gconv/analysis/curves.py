"""Sensitivity curves: accuracy against the share of channels gone, and the ratios read off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Loss of accuracy, a fraction of 1, that a set must stay below: a tenth of a point.
TOLERANCE = 0.001


def tolerated_ratio(
    ratios: Sequence[float], accuracies: Sequence[float], dense: float, tolerance: float
) -> float:
    """Largest ratio before the first one that loses `tolerance` of accuracy or more.

    Parameters
    ----------
    ratios : sequence of float
        Ascending.
    accuracies : sequence of float
        Accuracy at each ratio.
    dense : float
        Accuracy with nothing removed, in the same unit.
    tolerance : float
        In that unit, too.

    Returns
    -------
    float
        0 if the first ratio loses as much already.

    Examples
    --------
    >>> tolerated_ratio([0, 0.05, 0.1, 0.15], [93.7, 93.65, 93.5, 93.69], 93.7, 0.1)
    0.05
    """
    reached = 0.0
    for ratio, accuracy in zip(ratios, accuracies, strict=True):
        # 0.937 - 0.936 is a little more than 0.001 in binary, 0.936 - 0.935 a little less.
        if round(dense - accuracy, 9) >= tolerance:
            break
        reached = ratio
    return reached


@dataclass(frozen=True)
class Score:
    """What a network scores on held-out images: `accuracy` as a fraction of 1, mean `loss`."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Point(Score):
    """Score with `removed` channels of a set silenced, the share `ratio` of them was asked for."""

    ratio: float
    removed: int


@dataclass(frozen=True)
class Curve:
    """How the network fares as one coupled set loses channels.

    Attributes
    ----------
    layers : tuple of str
        The layers that make the channels together.
    channels : int
        How many there are.
    points : tuple of Point
        By ascending ratio; fewer than were asked for where the curve was stopped.
    """

    layers: tuple[str, ...]
    channels: int
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """Name of the first layer, with the number of the others."""
        more = len(self.layers) - 1
        return self.layers[0] + (f" (+{more})" if more else "")

    def ratio(self, dense: float, tolerance: float) -> float:
        """Return the ratio that :func:`tolerated_ratio` reads off the curve."""
        ratios = [point.ratio for point in self.points]
        return tolerated_ratio(ratios, [point.accuracy for point in self.points], dense, tolerance)


def layer_ratios(curves: Sequence[Curve], dense: Score, tolerance: float) -> dict[str, float]:
    """Find a ratio for each layer that holds every set to the ratio its curve allows.

    A set loses the least ratio of its layers. So a layer that belongs to several sets may have the
    largest of theirs, where in each of the others some layer holds the set back.

    Examples
    --------
    >>> def curve(ratio, *layers):
    ...     return Curve(layers, 4, (Point(0.9, 0.3, ratio, 1), Point(0.1, 2.3, 1.0, 4)))
    >>> layer_ratios([curve(0.25, "a", "b"), curve(0.75, "b")], Score(0.9, 0.3), 0.01)
    {'a': 0.25, 'b': 0.75}
    """
    own = [curve.ratio(dense.accuracy, tolerance) for curve in curves]
    sets: dict[str, list[int]] = {}
    for number, curve in enumerate(curves):
        for layer in curve.layers:
            sets.setdefault(layer, []).append(number)
    found = {layer: max(own[number] for number in numbers) for layer, numbers in sets.items()}
    for number in sorted(range(len(curves)), key=own.__getitem__):
        layers = curves[number].layers
        if min(found[layer] for layer in layers) > own[number]:
            found[min(layers, key=lambda layer: len(sets[layer]))] = own[number]
    return found


@dataclass(frozen=True)
class Together(Score):
    """Score with every set silenced at the ratio its own curve allows for `tolerance`.

    Sets that are harmless one by one need not be so together: this is what the network pruned by
    these ratios scores without fine-tuning.
    """

    tolerance: float
    params_ratio: float
    macs_ratio: float
