"""Sensitivity curves: accuracy against the share of channels gone, and the ratios read off them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from nni_gconv.files import write_text

__all__ = ["Curve", "Point", "Score", "Sensitivity", "Together", "layer_ratios", "tolerated_ratio"]

#: Shares of channels whose accuracies the table shows.
_SHOWN = (0.25, 0.5, 0.75, 1.0)


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


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`nni_gconv.sensitivity` has found.

    Attributes
    ----------
    criterion : str
        What decided which channels go first.
    dense : Score
        With nothing removed.
    curves : tuple of Curve
        One for each coupled set, in the order of the model.
    together : Together
        All sets at once.
    skipped : dict of str to str
        Layers that keep their channels, each with the reason.
    prune : dict
        Settings of a recipe's ``prune`` section that prune as was measured, but for the ratios.
    keep : dict of str to dict
        Layer -> settings its entry of a config_list needs besides the ratio.
    """

    criterion: str
    dense: Score
    curves: tuple[Curve, ...]
    together: Together
    skipped: Mapping[str, str] = field(default_factory=dict)
    prune: Mapping[str, Any] = field(default_factory=dict)
    keep: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def ratios(self, tolerance: float = 0.001) -> dict[str, float]:
        """Return the share of channels each layer may lose alone for less than `tolerance`.

        Parameters
        ----------
        tolerance : float, default 0.001
            Fraction of 1 of accuracy: 0.001 is a tenth of a point.

        Returns
        -------
        dict of str to float
            Layer -> ratio, by :func:`tolerated_ratio`; see :func:`layer_ratios` for layers whose
            channels belong to several sets.
        """
        return layer_ratios(self.curves, self.dense, tolerance)

    def config_list(self, tolerance: float = 0.001) -> list[dict[str, Any]]:
        """Return the ratios as NNI's config_list, without layers that lose nothing.

        Examples
        --------
        >>> points = (Point(0.9, 0.3, 0.25, 2), Point(0.5, 1.7, 0.5, 4))
        >>> curve, score = Curve(("conv",), 8, points), Score(0.9, 0.3)
        >>> found = Sensitivity("l1", score, (curve,), Together(0.9, 0.3, 0.001, 0.8, 0.8))
        >>> found.config_list()
        [{'op_names': ['conv'], 'sparse_ratio': 0.25}]
        """
        entries: list[dict[str, Any]] = []
        for layer, ratio in self.ratios(tolerance).items():
            settings = {"sparse_ratio": ratio, **self.keep.get(layer, {})}
            alike = [e for e in entries if {**e, "op_names": []} == {"op_names": [], **settings}]
            if alike:
                alike[0]["op_names"].append(layer)
            elif ratio > 0:
                entries.append({"op_names": [layer], **settings})
        return entries

    def table(self, title: str | None = None) -> Table:
        """Show each set: accuracies in percent with a quarter, half, ... of it gone; its ratio."""
        shown = sorted({self._nearest(share) for share in _SHOWN} - {0.0})
        table = Table("layers", title=title or "accuracy (%) by share of channels removed")
        for heading in ("channels", *(f"{ratio:g}" for ratio in shown), "ratio"):
            table.add_column(heading, justify="right")
        for curve in self.curves:
            found = {point.ratio: f"{100 * point.accuracy:.2f}" for point in curve.points}
            ratio = curve.ratio(self.dense.accuracy, self.together.tolerance)
            cells = [str(curve.channels), *(found.get(r, "") for r in shown), f"{ratio:g}"]
            table.add_row(curve.name, *cells)
        return table

    def summary(self) -> str:
        """Say in one line what the ratios come to together."""
        both = self.together
        return (
            f"{self.criterion}: dense {self.dense.accuracy:.2%}; all sets at the ratio that loses "
            f"less than {both.tolerance:g} alone: {both.accuracy:.2%} with "
            f"{both.params_ratio:.1%} of the parameters, {both.macs_ratio:.1%} of the MACs, "
            "not fine-tuned"
        )

    def _nearest(self, share: float) -> float:
        every = {point.ratio for curve in self.curves for point in curve.points}
        return min(every, key=lambda ratio: (abs(ratio - share), ratio), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        sets = [
            {
                **asdict(curve),
                "sparse_ratio": curve.ratio(self.dense.accuracy, self.together.tolerance),
            }
            for curve in self.curves
        ]
        return {
            "criterion": self.criterion,
            "dense": asdict(self.dense),
            "together": asdict(self.together),
            "sets": sets,
            "skipped": dict(self.skipped),
        }

    def save(self, folder: str | Path, tolerance: float | None = None) -> list[Path]:
        """Write ``curves.csv``, ``curves.png`` and ``prune.yml``.

        Parameters
        ----------
        folder : str or Path
            Made when missing.
        tolerance : float, optional
            Of the ratios in ``prune.yml``, which is the ``prune`` section of a recipe; default:
            that of :attr:`together`.

        Returns
        -------
        list of Path
            The files.
        """
        from nni_gconv.analysis.plot import plot_curves

        folder = Path(folder).expanduser()
        tolerance = self.together.tolerance if tolerance is None else tolerance
        table, section = folder / "curves.csv", folder / "prune.yml"
        write_text(table, self._csv())
        write_text(section, self._yaml(tolerance))
        return [table, plot_curves(self, folder / "curves.png", tolerance=tolerance), section]

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["set", "layers", "channels", "ratio", "removed", "accuracy", "loss"])
        for number, curve in enumerate(self.curves):
            own = (number, " ".join(curve.layers), curve.channels)
            for p in curve.points:
                writer.writerow([*own, p.ratio, p.removed, p.accuracy, p.loss])
        return text.getvalue()

    def _yaml(self, tolerance: float) -> str:
        entries = self.config_list(tolerance)
        head = (
            f"# Every layer alone loses less than {tolerance:g} of the accuracy ({self.criterion}; "
            f"dense {self.dense.accuracy:.4f}).\n"
        )
        if not entries:
            head += "# No layer can lose a channel for that.\n"
        section = {"prune": {**self.prune, "config_list": entries}}
        return head + yaml.safe_dump(section, sort_keys=False, default_flow_style=None, width=100)
