"""Sensitivity curves that the trials of an experiment measured, one set each, in one picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from nni_gconv.analysis import Curve, Point, Score, Sensitivity, Together
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.report.collect import collect
from nni_gconv.yaml12 import read_yaml

_CURVES = "curves.csv"


def join_curves(
    experiment: str | Path, *, output: str | Path | None = None, tolerance: float = 0.001
) -> tuple[Sensitivity, list[Path]]:
    """Join the curves of an experiment's trials and write them like those of one analysis.

    Parameters
    ----------
    experiment : str or Path
        Folder or id of an experiment whose ``trialCommand`` is ``nni-gconv sensitivity``.
    output : str or Path, optional
        Folder for ``curves.csv``, ``curves.png`` and ``prune.yml``; default: ``report`` in the
        experiment's folder.
    tolerance : float, default 0.001
        Loss of accuracy, a fraction of 1, that a set must stay below.

    Returns
    -------
    found : Sensitivity
        Its `together` was not measured: NaN.
    files : list of Path
        What was written.

    Raises
    ------
    ConfigError
        No trial has curves, or they are of several criteria.
    CheckpointError
        A file of theirs is damaged.
    """
    folders = [Path(row.folder) for row in collect(experiment) if row.folder]
    tables = [file for folder in folders for file in folder.glob(f"sensitivity/*/{_CURVES}")]
    if not tables:
        raise ConfigError(f"{experiment}: no trial has a sensitivity/*/{_CURVES}")
    criteria = {table.parent.name for table in tables}
    if len(criteria) > 1:
        names = ", ".join(sorted(criteria))
        raise ConfigError(f"{experiment}: curves of several criteria cannot be joined: {names}")
    curves = [curve for table in tables for curve in _read(table)]
    points = [point for curve in curves for point in curve.points]
    # Nothing removed, or, where no curve begins with that, the best there is.
    dense = min(points, key=lambda point: (point.removed, -point.accuracy))
    file = tables[0].parent / "prune.yml"
    section = read_yaml(file.read_text(encoding="utf-8"), file.name)["prune"]
    found = Sensitivity(
        criteria.pop(),
        Score(dense.accuracy, dense.loss),
        tuple(curves),
        Together(math.nan, math.nan, tolerance, math.nan, math.nan),
        prune={key: value for key, value in section.items() if key != "config_list"},
    )
    # <experiment>/environments/<environment>/trials/<trial>
    return found, found.save(Path(output) if output else folders[0].parents[3] / "report")


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
