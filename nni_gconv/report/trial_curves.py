"""Sensitivity curves that the trials of an experiment measured, one set each, in one picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from nni_gconv.analysis import TOLERANCE, Curve, Point, Score, Sensitivity, Together, tolerance_of
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.report.collect import TrialRow, collect
from nni_gconv.yaml12 import read_yaml

_CURVES = "curves.csv"


def join_curves(
    experiment: str | Path, *, output: str | Path | None = None, tolerance: float | None = None
) -> tuple[Sensitivity, list[Path]]:
    """Join the curves of an experiment's trials and write them like those of one analysis.

    Parameters
    ----------
    experiment : str or Path
        Folder or id of an experiment whose ``trialCommand`` is ``nni-gconv sensitivity``.
    output : str or Path, optional
        Folder for ``curves.csv``, ``curves.png`` and ``prune.yml``; default: ``report`` in the
        experiment's folder.
    tolerance : float, optional
        Loss of accuracy, a fraction of 1, that a set must stay below; default: the trials' own.

    Returns
    -------
    found : Sensitivity
        Its `together` was not measured: NaN.
    files : list of Path
        What was written.

    Raises
    ------
    ConfigError
        No trial has curves, or they are of several criteria, or of several tolerances and none is
        given.
    CheckpointError
        A file of theirs is damaged.
    """
    rows = collect(experiment)
    folders, tables = [Path(row.folder) for row in rows if row.folder], curve_tables(rows)
    if not tables:
        raise ConfigError(f"{experiment}: no trial has a sensitivity/*/{_CURVES}")
    criteria = {table.parent.name for table in tables}
    if len(criteria) > 1:
        names = ", ".join(sorted(criteria))
        raise ConfigError(f"{experiment}: curves of several criteria cannot be joined: {names}")
    curves = [curve for table in tables for curve in _read(table)]
    sections = [(table.parent / "prune.yml").read_text(encoding="utf-8") for table in tables]
    own = sorted({tolerance_of(section) or TOLERANCE for section in sections})
    if tolerance is None and len(own) > 1:
        several = ", ".join(f"{each:g}" for each in own)
        raise ConfigError(f"{experiment}: trials of several tolerances ({several}): give one")
    tolerance = own[0] if tolerance is None else tolerance
    points = [point for curve in curves for point in curve.points]
    # Nothing removed, or, where no curve begins with that, the best there is.
    dense = min(points, key=lambda point: (point.removed, -point.accuracy))
    section = read_yaml(sections[0], "prune.yml")["prune"]
    found = Sensitivity(
        criteria.pop(),
        Score(dense.accuracy, dense.loss),
        tuple(curves),
        Together(math.nan, math.nan, tolerance, math.nan, math.nan),
        prune={key: value for key, value in section.items() if key != "config_list"},
    )
    # <experiment>/environments/<environment>/trials/<trial>
    return found, found.save(Path(output) if output else folders[0].parents[3] / "report")


def curve_tables(rows: Sequence[TrialRow]) -> list[Path]:
    """Return the tables of curves that these trials wrote; none if they measured something else."""
    folders = [Path(row.folder) for row in rows if row.folder]
    return [file for folder in folders for file in folder.glob(f"sensitivity/*/{_CURVES}")]


def _read(table: Path) -> list[Curve]:
    sets: dict[str, tuple[tuple[str, ...], int, list[Point]]] = {}
    try:
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                layers = tuple(row["layers"].split(" "))
                _, _, points = sets.setdefault(row["set"], (layers, int(row["channels"]), []))
                score = float(row["accuracy"]), float(row["loss"])
                points.append(Point(*score, float(row["ratio"]), int(row["removed"])))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{table} is damaged: {error}") from error
    return [Curve(layers, size, tuple(points)) for layers, size, points in sets.values()]
