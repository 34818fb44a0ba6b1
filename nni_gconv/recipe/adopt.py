"""A trial that goes on where another trial of the same recipe was cut off.

NNI gives a trial it resumes its old id and folder. One that is lost (its machine went away), or
that somebody submits again, is a new trial with an empty folder. What the old one had finished is
taken over: same recipe, same seed, so the same numbers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from nni_gconv.recipe.folder import first_difference
from nni_gconv.recipe.schema import Recipe

__all__ = ["adopt_unfinished"]

# What NNI and the lock keep in a trial's folder, and what is said of that trial alone.
_OWN = ("trial.log", "trial.stdout", "trial.stderr", ".lock", "nni_told.json", "result.json")


def adopt_unfinished(path: Path, recipe: Recipe) -> Path | None:
    """Copy into an empty trial's folder what an unfinished trial of the same recipe left.

    Parameters
    ----------
    path : Path
        Folder of the trial, beside those of the experiment's other trials.
    recipe : Recipe
        What the trial is to run.

    Returns
    -------
    Path or None
        The folder that was copied; None where this trial has begun already, or no trial of the
        same recipe was cut off, or the one that was still runs. The other trial's folder stays
        as it is.
    """
    if (path / "recipe.yml").is_file():
        return None
    content = recipe.model_dump(mode="json")
    for file in sorted(path.parent.glob("*/recipe.yml")):
        folder = file.parent
        if folder == path or (folder / "result.json").exists() or not _same(file, content):
            continue
        try:
            with FileLock(folder / ".lock", timeout=0):
                _copy(folder, path)
        except Timeout:
            continue  # it runs: nobody needs to go on with it
        return folder
    return None


def _same(file: Path, content: dict[str, object]) -> bool:
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(before, dict) and first_difference(before, content) is None


def _copy(source: Path, target: Path) -> None:
    """Copy whole or not at all: the recipe, by which a folder is known, comes last."""
    parts = target / ".adopted"
    shutil.rmtree(parts, ignore_errors=True)
    ignore = shutil.ignore_patterns(*_OWN)
    shutil.copytree(source, parts, ignore=ignore, symlinks=True)
    for entry in sorted(parts.iterdir(), key=lambda one: one.name == "recipe.yml"):
        place = target / entry.name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        entry.replace(place)
    parts.rmdir()
