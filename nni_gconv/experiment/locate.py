"""Finding an experiment that has been run, by its id or folder."""

from __future__ import annotations

import json
from pathlib import Path

from nni_gconv.errors import ConfigError, nearest


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
    path = folder_of(source)
    if (path / "db").is_dir():
        return path.resolve()
    raise ConfigError(f"{source}: neither an experiment's folder nor its id{hint_of_id(source)}")


def folder_of(source: str | Path) -> Path:
    """Return the folder that a path, or an experiment's id, names; it need not exist."""
    path = Path(source).expanduser()
    if not path.is_dir() and len(path.parts) == 1:
        return Path(_registry().get(str(source), _home())) / str(source)
    return path


def hint_of_id(source: str | Path) -> str:
    """Return the end of a message about an unknown id: the nearest that is known, or nothing."""
    known = [*_registry(), *(entry.name for entry in _home().glob("*/"))]
    close = nearest(str(source), known, count=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _home() -> Path:
    return Path.home() / "nni-experiments"


def _registry() -> dict[str, str]:
    """Return nnictl's list of experiments: id -> folder they are kept in."""
    home = _home()
    try:
        entries = json.loads((home / ".experiment").read_text(encoding="utf-8"))
        return {key: str(entry.get("logDir") or home) for key, entry in entries.items()}
    except (OSError, ValueError, AttributeError):
        return {}
