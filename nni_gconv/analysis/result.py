"""What a sensitivity analysis found: ratios, tables, files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nni_gconv.analysis.curves import TOLERANCE, Curve, Score, Together, layer_ratios
from nni_gconv.analysis.plot import plot_curves
from nni_gconv.display import Table
from nni_gconv.files import write_text

#: Shares of channels whose accuracies the table shows.
_SHOWN = (0.25, 0.5, 0.75, 1.0)
#: Before the tolerance in the head of a `prune.yml`.
_LOSES = "Every layer alone loses less than"


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

    def ratios(self, tolerance: float = TOLERANCE) -> dict[str, float]:
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

    def config_list(self, tolerance: float = TOLERANCE) -> list[dict[str, Any]]:
        """Return the ratios as NNI's config_list, without layers that lose nothing.

        Examples
        --------
        >>> from nni_gconv.analysis import Point
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
        folder = Path(folder).expanduser()
        tolerance = self.together.tolerance if tolerance is None else tolerance
        table, section = folder / "curves.csv", folder / "prune.yml"
        write_text(table, self._csv())
        write_text(section, self._yaml(tolerance))
        return [table, self.plot(folder / "curves.png", tolerance=tolerance), section]

    def plot(
        self, path: str | Path, *, tolerance: float | None = None, title: str | None = None
    ) -> Path:
        """Draw the curves, see :func:`plot_curves`; default: the tolerance of :attr:`together`."""
        tolerance = self.together.tolerance if tolerance is None else tolerance
        heading = title or self.criterion
        return plot_curves(self.curves, self.dense, path, tolerance=tolerance, title=heading)

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
            f"# {_LOSES} {tolerance:g} of the accuracy ({self.criterion}; "
            f"dense {self.dense.accuracy:.4f}).\n"
        )
        if not entries:
            head += "# No layer can lose a channel for that.\n"
        section = {"prune": {**self.prune, "config_list": entries}}
        return head + yaml.safe_dump(section, sort_keys=False, default_flow_style=None, width=100)


def tolerance_of(section: str) -> float | None:
    """Read the tolerance out of the head of a ``prune.yml``; None: it does not say it.

    Examples
    --------
    >>> tolerance_of("# Every layer alone loses less than 0.005 of the accuracy (l1; dense 0.9).")
    0.005
    """
    found = re.search(rf"^# {_LOSES} (\S+) of the accuracy", section, re.MULTILINE)
    return float(found[1]) if found else None
