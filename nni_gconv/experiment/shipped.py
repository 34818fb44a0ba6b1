"""Where the experiments that come with the package lie."""

from __future__ import annotations

from pathlib import Path

from nni_gconv.errors import ConfigError, unknown_name

_PACKAGE = Path(__file__).resolve().parents[1]


def _folder() -> Path:
    installed = _PACKAGE / "_files" / "experiments"
    return installed if installed.is_dir() else _PACKAGE.parent / "experiments"


def experiment_names() -> list[str]:
    """Return the names of the experiments that come with the package, sorted.

    Examples
    --------
    >>> "quickstart" in experiment_names()
    True
    """
    return sorted(file.parent.name for file in _folder().glob("*/experiment.yml"))


def experiment_file(name: str, file: str = "experiment.yml") -> Path:
    """Return the path of a file of an experiment that comes with the package.

    The same call works from an installed wheel, an editable install and a source checkout.

    Parameters
    ----------
    name : str
        Name of the experiment, the folder's name under ``experiments/``.
    file : str, default "experiment.yml"
        File in it.

    Returns
    -------
    Path
        An existing file.

    Raises
    ------
    ConfigError
        There is no such experiment, or no such file in it.

    Examples
    --------
    >>> experiment_file("quickstart").name
    'experiment.yml'
    """
    names = experiment_names()
    if name not in names:
        raise ConfigError(unknown_name("experiment", name, names))
    path = _folder() / name / file
    if not path.is_file():
        raise ConfigError(
            unknown_name(
                "file", file, (p.name for p in path.parent.iterdir()), f"experiment {name}"
            )
        )
    return path
