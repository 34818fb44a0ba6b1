"""A trial that goes on where another trial of the same recipe was cut off.

NNI gives a trial it resumes its old id and folder. One that is lost (its machine went away), or
that somebody submits again, is a new trial with an empty folder. What the old one had finished is
taken over: same recipe, same seed, so the same numbers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import Timeout

from nni_gconv.errors import ConfigError
from nni_gconv.files import lock_of
from nni_gconv.recipe.folder import first_difference
from nni_gconv.recipe.schema import Recipe
from nni_gconv.yaml12 import read_yaml

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
            with lock_of(folder / ".lock", timeout=0):
                _copy(folder, path)
        except (Timeout, ConfigError):
            continue  # it runs, and nobody needs to go on with it; or a link stands there
        return folder
    return None


def _same(file: Path, content: dict[str, object]) -> bool:
    try:
        before = read_yaml(file.read_text(encoding="utf-8"), file.name)
    except (OSError, ConfigError, UnicodeDecodeError):
        return False
    return isinstance(before, dict) and first_difference(before, content) is None


def _ignored(folder: str, names: list[str]) -> list[str]:
    """Leave out what is another trial's own, halves of files, and links, which lead elsewhere."""
    return [
        name
        for name in names
        if name in _OWN or name.startswith(".part-") or Path(folder, name).is_symlink()
    ]


def _copy(source: Path, target: Path) -> None:
    """Copy whole or not at all: the recipe, by which a folder is known, comes last."""
    parts = target / ".adopted"
    shutil.rmtree(parts, ignore_errors=True)
    shutil.copytree(source, parts, ignore=_ignored)
    for entry in sorted(parts.iterdir(), key=lambda one: one.name == "recipe.yml"):
        place = target / entry.name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        entry.replace(place)
    parts.rmdir()
