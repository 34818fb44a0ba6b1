"""Finding an experiment that has been run, by its id or folder."""

from __future__ import annotations

import json
from pathlib import Path

from nni_gconv.errors import ConfigError, nearest

__all__ = ["find_experiment"]


def find_experiment(source: str | Path) -> Path:
    """Return the folder of an experiment.

    Parameters
    ----------
    source : str or Path
        Its folder, or its id as ``nnictl experiment list --all`` shows it.

    Returns
    -------
    Path
        With the manager's database in ``db/``; its name is the id.

    Raises
    ------
    ConfigError
        There is no such experiment.
    """
    path = Path(source).expanduser()
    home = Path.home() / "nni-experiments"
    known = _registry(home)
    if not path.is_dir() and len(path.parts) == 1:
        path = Path(known.get(str(source), home)) / str(source)
    if (path / "db").is_dir():
        return path.resolve()
    close = nearest(str(source), [*known, *(entry.name for entry in home.glob("*/"))], count=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{source}: neither an experiment's folder nor its id{hint}")


def _registry(home: Path) -> dict[str, str]:
    """Return nnictl's list of experiments: id -> folder they are kept in."""
    try:
        entries = json.loads((home / ".experiment").read_text(encoding="utf-8"))
        return {key: str(entry.get("logDir") or home) for key, entry in entries.items()}
    except (OSError, ValueError, AttributeError):
        return {}
