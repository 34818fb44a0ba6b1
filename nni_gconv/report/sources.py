"""Finding what a user names: experiments by id or folder, runs, trials, files of small networks."""

from __future__ import annotations

from pathlib import Path

from nni_gconv.errors import ConfigError
from nni_gconv.experiment import folder_of, hint_of_id

COMPACT = "compact.safetensors"
# The second is there before fine-tuning ends; its layers are the same.
_NETWORKS = (COMPACT, "speedup.safetensors")
_RUN_FILES = ("result.json", "stages.json", "recipe.yml")


def is_experiment(folder: Path) -> bool:
    """Tell whether a folder is that of an NNI experiment."""
    return (folder / "db").is_dir() or (folder / "environments").is_dir()


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of one run of a recipe, finished or not."""
    return any((folder / name).is_file() for name in _RUN_FILES)


def locate(source: str | Path) -> Path:
    """Return the folder of an experiment, of a run, or of several runs.

    Parameters
    ----------
    source : str or Path
        A folder, or an experiment's id, looked up as ``nnictl`` does.

    Raises
    ------
    ConfigError
        It is none of these; names the nearest id.
    """
    path = folder_of(source)
    if not path.is_dir() and len(Path(source).parts) == 1:
        hint = hint_of_id(source)
        raise ConfigError(f"{source}: neither a folder nor an experiment's id{hint}")
    if not path.is_dir():
        raise ConfigError(f"{source}: no such folder")
    if not (is_experiment(path) or is_run(path) or any(is_run(p) for p in path.glob("*/"))):
        raise ConfigError(
            f"{source}: neither an experiment's folder (with db/) nor one with a result.json"
        )
    return path


def trial_folders(experiment: Path) -> dict[str, Path]:
    """Return the folders of an experiment's trials by their ids."""
    found: dict[str, Path] = {}
    for place in [*experiment.glob("environments/*/trials/*"), *experiment.glob("trials/*")]:
        # trials/<id>/output only holds the link for TensorBoard
        if place.is_dir() and (place.name not in found or (place / "result.json").is_file()):
            found[place.name] = place
    return found


def trial_file(source: str | Path) -> Path:
    """Return the file of one small network.

    Parameters
    ----------
    source : str or Path
        The file itself, a run's folder, or ``EXPERIMENT/TRIAL``: id or folder of an experiment,
        and the beginning of a trial's id.

    Raises
    ------
    ConfigError
        There is none; says what is there instead.

    Examples
    --------
    >>> trial_file("runs/nowhere")
    Traceback (most recent call last):
        ...
    nni_gconv.errors.ConfigError: runs/nowhere: neither a file, a run's folder nor EXPERIMENT/TRIAL
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        path = _trial(source, path)
    elif is_experiment(path):
        raise ConfigError(f"{source}: an experiment; which trial of it? ({_ids(path)})")
    for name in _NETWORKS:
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"{source}: no small network yet: {path} holds no {COMPACT}")


def _trial(source: str | Path, path: Path) -> Path:
    """Return the folder of ``EXPERIMENT/TRIAL``."""
    parent = path.parent
    bare = len(path.parts) == 2  # ID/TRIAL: the first part is no folder but an id
    if len(path.parts) < 2 or not (parent.is_dir() or bare):
        try:
            named = locate(source)
        except ConfigError:
            raise ConfigError(
                f"{source}: neither a file, a run's folder nor EXPERIMENT/TRIAL"
            ) from None
        raise ConfigError(f"{source}: an experiment; which trial of it? ({_ids(named)})")
    try:
        experiment = locate(parent if parent.is_dir() else path.parts[0])
    except ConfigError as error:
        if bare and not parent.is_dir() and "did you mean" in str(error):
            raise
        raise ConfigError(
            f"{source}: neither a file, a run's folder nor EXPERIMENT/TRIAL"
        ) from None
    folders = trial_folders(experiment)
    matching = [key for key in folders if key.startswith(path.name)]
    if path.name in folders:
        matching = [path.name]
    if len(matching) != 1:
        what = "several trials begin so" if matching else "the experiment has no such trial"
        raise ConfigError(f"{source}: {what} ({_ids(experiment, matching)})")
    return folders[matching[0]]


def _ids(experiment: Path, ids: list[str] | None = None) -> str:
    ids = sorted(ids or trial_folders(experiment))
    return ", ".join(ids[:20]) + (", ..." if len(ids) > 20 else "") or "it has none yet"
