"""Numbers of a trial in MLflow and Weights & Biases, for recipes that ask for them.

Where they go is said as ever: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ``WANDB_MODE``
and ``WANDB_PROJECT``. A trial that is resumed goes on in its run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nni_gconv.errors import ConfigError
from nni_gconv.files import write_text

#: Name in a recipe, library and extra alike.
TRACKERS = ("mlflow", "wandb")


class Tracker(Protocol):
    """Where numbers are shown."""

    def numbers(self, values: Mapping[str, float], step: int | None) -> None:
        """Show numbers, of an epoch or of the whole trial."""

    def close(self) -> None:
        """All is said."""


def open_trackers(
    names: Sequence[str], folder: Path, title: str, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Begin a run, or go on with the one that a folder belongs to, in each of some trackers.

    Parameters
    ----------
    names : sequence of str
        Of :data:`TRACKERS`.
    folder : Path
        The trial's; the ids of its runs are kept in it.
    title : str
        What to call a run.
    settings : mapping
        Nested; shown by dotted keys.

    Raises
    ------
    ConfigError
        A library is not installed.
    """
    kinds: dict[str, Callable[..., Tracker]] = {"mlflow": _MLflow, "wandb": _Wandb}
    libraries = {name: _library(name) for name in names}
    flat = flattened(settings)
    return [kinds[name](module, folder, title, flat) for name, module in libraries.items()]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"report.to: {name} is not installed: pip install 'nni-gconv[{name}]'"
        ) from error


class _MLflow:
    def __init__(self, library: Any, folder: Path, title: str, settings: Mapping[str, Any]) -> None:
        self._file = folder / "mlflow_run.txt"
        known = self._file.read_text(encoding="utf-8") if self._file.is_file() else None
        self._client = library.MlflowClient()
        if known is None:
            with library.start_run(run_name=title) as run:
                known = run.info.run_id
                library.log_params({key: str(value)[:500] for key, value in settings.items()})
            write_text(self._file, known)
        self._run = known

    def numbers(self, values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step or 0)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb:
    def __init__(self, library: Any, folder: Path, title: str, settings: Mapping[str, Any]) -> None:
        file = folder / "wandb_run.txt"
        known = file.read_text(encoding="utf-8") if file.is_file() else library.util.generate_id()
        write_text(file, known)
        self._run = library.init(
            id=known, resume="allow", name=title, dir=str(folder), config=dict(settings)
        )

    def numbers(self, values: Mapping[str, float], step: int | None) -> None:
        if step is None:
            self._run.summary.update(dict(values))
        else:
            self._run.log({**values, "epoch": step})

    def close(self) -> None:
        self._run.finish()


def flattened(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Write nested settings by dotted keys; what is None is left out.

    Examples
    --------
    >>> flattened({"model": {"name": "resnet8", "weights": None}, "seed": 0})
    {'model.name': 'resnet8', 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            found |= flattened(value, name)
        elif value is not None:
            found[name] = value
    return found
