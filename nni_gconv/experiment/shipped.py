"""Where the experiments that come with the package lie."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.files import shipped_folder, write_text
from nni_gconv.yaml12 import read_yaml


def experiment_names() -> list[str]:
    """Return the names of the experiments that come with the package, sorted.

    Examples
    --------
    >>> "quickstart" in experiment_names()
    True
    """
    return sorted(
        file.parent.name for file in shipped_folder("experiments").glob("*/experiment.yml")
    )


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
    path = shipped_folder("experiments") / name / file
    if not path.is_file():
        raise ConfigError(
            unknown_name(
                "file", file, (p.name for p in path.parent.iterdir()), f"experiment {name}"
            )
        )
    return path


def with_seeds(experiment: Path, folder: str | Path, seeds: int) -> Path:
    """Write an experiment anew with a seed in its search space: every trial so many times.

    Parameters
    ----------
    experiment : Path
        Experiment file with a ``searchSpaceFile`` and a ``maxTrialNumber``, its recipe beside it.
    folder : str or Path
        Where to; made. Files there that are others are left alone.
    seeds : int
        Seeds 0 to `seeds` - 1.

    Returns
    -------
    Path
        The new experiment file.

    Raises
    ------
    ConfigError
        The folder holds other files of these names.

    Examples
    --------
    >>> with_seeds(experiment_file("quickstart"), "runs/three", 3)  # doctest: +SKIP
    PosixPath('runs/three/experiment.yml')
    """
    folder = Path(folder).expanduser()
    plan = read_yaml(experiment.read_text(encoding="utf-8"), str(experiment))
    space = json.loads((experiment.parent / plan["searchSpaceFile"]).read_text(encoding="utf-8"))
    plan["maxTrialNumber"] *= seeds
    plan["maxExperimentDuration"] = f"{seeds}h"
    space["seed"] = {"_type": "choice", "_value": list(range(seeds))}
    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in experiment.parent.iterdir()
        if file.suffix == ".yml"
    }
    texts[experiment.name] = yaml.safe_dump(plan, sort_keys=False)
    texts[plan["searchSpaceFile"]] = json.dumps(space, indent=2) + "\n"
    for name, text in texts.items():
        there = folder / name
        if there.exists() and there.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{there}: holds something else; move it or run from another folder")
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / experiment.name
